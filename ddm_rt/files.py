"""Files that are written whole or not at all, and their hashes."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from io import BufferedRandom
from pathlib import Path
from typing import Any

from ddm_rt.errors import DdmError


def asset(name: str) -> Path:
    """Path of a file or directory that ships in the package."""
    return Path(str(resources.files("ddm_rt") / "assets" / name))


def check_free(out: Path) -> None:
    """Raises DdmError where `out` can't become a new directory: it is occupied, or lies below a file."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DdmError(f"{out} exists and is not an empty directory; choose another --out")
    parent = next(parent for parent in out.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise DdmError(f"{out}: {parent} is a file; expected a directory")


@contextmanager
def atomic_directory(out: Path) -> Iterator[Path]:
    """A temporary sibling of `out`, renamed to it at the end and removed on any error."""
    check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield temporary
        settle(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        name_place(error, out)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file: a reader sees the old one or the whole new one."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path) -> Iterator[BufferedRandom]:
    """A file under a temporary name beside `path`, on the disk and renamed to it at the end, removed on any error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        name_place(error, path)
        raise


def name_place(error: BaseException, path: Path) -> None:
    """The system doesn't say where a write failed: a full disk shows in a write to an open file, without a name."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def write_json(path: Path, tree: Any) -> None:
    """`write_atomic` of `as_json`."""
    write_atomic(path, as_json(tree))


def as_json(tree: Any) -> str:
    """Indented JSON as our files hold it; NaN and infinities are refused."""
    return json.dumps(tree, indent=1, allow_nan=False) + "\n"


def read(path: str | Path, rest: str, kind: type[DdmError] = DdmError, where: str | Path = "") -> bytes:
    """A file's content. Raises `kind` where it can't be read; `where` (the path) begins the message, `rest` ends it."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise kind(f"{where or path}: cannot be read ({error.strerror}); {rest}") from error


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settle(temporary: Path) -> None:
    """Before a temporary directory gets its name: readable by others, and on the disk."""
    temporary.chmod(0o755)
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One process at a time is in the block; the lock goes with the process that holds it."""
    handle = lock(directory)
    try:
        yield
    finally:
        os.close(handle)


def lock(path: Path, *, wait: bool = True) -> int:
    """A handle that holds the lock of a file or directory. Raises BlockingIOError where another holds it and `wait` is
    false.
    """
    import fcntl

    handle = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle
