"""API keys: who may call, and with which priority. The server holds their hashes alone."""

import hashlib
import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ddm_rt.errors import DdmError
from ddm_rt.files import read

_SHORTEST = 16  # characters of a key
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PRIORITY = re.compile(r"-?[0-9]{1,6}")
_EXPECTED = f"expected NAME KEY [PRIORITY], the key of {_SHORTEST} ASCII characters or more, or sha256:HEX"


@dataclass(frozen=True)
class Caller:
    """Whom a key belongs to. `name` is empty where the server asks for no keys."""

    name: str = ""
    priority: int = 0


class Keys:
    """The callers of a server."""

    def __init__(self, callers: Sequence[tuple[bytes, Caller]]) -> None:
        """`callers` are sha256 digests of keys, each with whom it belongs to."""
        self._callers = tuple(callers)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file with a line `NAME KEY [PRIORITY]` for each key; `#` starts a comment line.

        KEY is the key itself or "sha256:" and the hexadecimal sha256 of it. Requests of a higher PRIORITY (0 where it
        is not given) go first. Raises DdmError naming the line, and never a key, where the file can't be read or
        holds anything else.
        """
        try:
            lines = read(path, "expected a file of API keys").decode().splitlines()
        except UnicodeDecodeError as error:
            raise DdmError(f"{path}: not text; {_EXPECTED}") from error
        callers = []
        for number, line in enumerate(lines, start=1):
            if (entry := line.strip()) and not entry.startswith("#"):
                callers.append(_parse(entry, f"{path}: line {number}"))
        if not callers:
            raise DdmError(f"{path}: holds no keys; {_EXPECTED}")
        for what, values in (("name", [caller.name for _, caller in callers]), ("key", [key for key, _ in callers])):
            if len(set(values)) < len(values):
                raise DdmError(f"{path}: a {what} stands there twice; expected each once")
        return cls(callers)

    def find(self, presented: str) -> Caller | None:
        """Whose key it is. Every hash is compared, and each in constant time."""
        digest = hashlib.sha256(presented.encode("utf-8", "surrogatepass")).digest()
        found = None
        for known, caller in self._callers:
            if hmac.compare_digest(known, digest):
                found = caller
        return found


def _parse(entry: str, where: str) -> tuple[bytes, Caller]:
    parts = entry.split()
    name, key, priority = parts if len(parts) == 3 else (*parts, "0") if len(parts) == 2 else ("", "", "")
    if not (_NAME.fullmatch(name) and _PRIORITY.fullmatch(priority)):
        raise DdmError(f"{where}: {_EXPECTED}")
    if _DIGEST.fullmatch(key):
        digest = bytes.fromhex(key.removeprefix("sha256:"))
    elif len(key) >= _SHORTEST and key.isascii() and not key.startswith("sha256:"):
        digest = hashlib.sha256(key.encode()).digest()
    else:
        raise DdmError(f"{where}: {_EXPECTED}")
    return digest, Caller(name, int(priority))
