"""The cache folder of whoever runs this: what was compiled on this machine, which is code, and so is never in a bundle.

What lies there is signed with a secret of the cache, so that what somebody else put there is never run.
"""

import contextlib
import hmac
import logging
import os
import secrets
import tempfile
from pathlib import Path

from ddm_rt.errors import DdmError
from ddm_rt.files import write_atomic

CACHE = "DDM_RT_CACHE"  # an environment variable: where the cache is
SECRET = "secret"
_SECRET_BYTES = 32
_log = logging.getLogger(__name__)


class Folder:
    """Signed files in one folder of the cache. Those that were used longest ago make room for new ones."""

    def __init__(self, name: str, room: int) -> None:
        """`room`: bytes of all files."""
        self._name, self._room = name, room

    def read(self, name: str) -> bytes | None:
        """The content of a file; None where it isn't there, or is broken or was not made here, which is a warning.

        Raises DdmError as `signed_here`, and OSError.
        """
        path = root() / self._name / name
        try:
            signature, _, content = path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        if not signed_here(name.encode() + content, signature):
            _log.warning("%s is not used, and is made again: it is broken, or was not made here", path)
            return None
        with contextlib.suppress(OSError):  # where others may only read, or another process has just removed it
            os.utime(path)
        return content

    def write(self, name: str, content: bytes) -> None:
        """Raises DdmError as `sign`, and OSError."""
        path = root() / self._name / name
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomic(path, sign(name.encode() + content) + b"\n" + content)
        self._make_room(path.parent)

    def _make_room(self, folder: Path) -> None:
        there = []
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process's, renamed or removed meanwhile
                status = path.stat()
                there.append((status.st_mtime, status.st_size, path))
        room = self._room
        for _, size, path in sorted(there, reverse=True):
            room -= size
            if room < 0 and not path.name.startswith("."):
                path.unlink(missing_ok=True)


def root() -> Path:
    """The cache's folder."""
    chosen = os.environ.get(CACHE)
    if chosen:
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddm_rt"
    except RuntimeError as error:
        raise DdmError(f"this user has no home folder to keep a cache in; {CACHE} names another place") from error


def sign(content: bytes) -> bytes:
    """What says that `content` was made here. Raises DdmError as `signed_here`."""
    return _signature(content, _secret(make=True) or b"")


def signed_here(content: bytes, signature: bytes) -> bool:
    """Whether `sign` gave that signature of `content`, with this cache's secret.

    Raises DdmError where others could have the secret.
    """
    secret = _secret(make=False)
    return secret is not None and hmac.compare_digest(_signature(content, secret), signature)


def _signature(content: bytes, secret: bytes) -> bytes:
    return hmac.digest(secret, content, "sha256").hex().encode()


def _secret(*, make: bool) -> bytes | None:
    """The cache's own, which nobody but the user can read; None where there is none and none is to be made."""
    path = root() / SECRET
    if not path.is_file():
        if not make:
            return None
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, name = tempfile.mkstemp(prefix=f".{SECRET}.", dir=path.parent)  # for the user alone
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(_SECRET_BYTES))
        with contextlib.suppress(FileExistsError):  # another process was first
            os.link(name, path)
        Path(name).unlink()
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            status, content = os.fstat(file.fileno()), file.read()
    except OSError as error:
        raise DdmError(f"{path}: can't be read, or is a link ({error.strerror}). Remove it") from error
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or len(content) != _SECRET_BYTES:
        raise DdmError(
            f"{path}: belongs to somebody else, isn't whole, or others may read it; whoever has it can sign code. "
            "Remove it"
        )
    return content
