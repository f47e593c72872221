"""Where shards lie: in a folder, or under a prefix of a bucket in object storage (S3, by fsspec's s3fs).

In both a file appears whole or not at all, and what a killed process leaves is found or invisible. A folder is locked.
A bucket has no locks: there the manifest is written only over the one that was read, so of two processes one stops.
"""

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import IO, Any, Protocol, cast

from ddm_rt.errors import DdmError
from ddm_rt.files import as_json, atomic_file, lock, name_place, sha256, write_atomic

MANIFEST = "manifest.json"

_S3 = "s3://"
_BLOCK = 2**23  # bytes that are read at a time
_PART = 50 * 2**20  # bytes of a part: what is no larger than two goes up in one request
_UPLOADS = 2  # parts that are sent at once; they are in memory
# What a store answers to a write whose condition doesn't hold (any more), by its code.
_OVERTAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey", "412", "409")


class Place(Protocol):
    """Holds the files of one request's shards, by their names."""

    def read(self, name: str) -> bytes | None:
        """A file's content; None where there is none."""

    def occupied(self) -> bool:
        """Whether there is anything. Raises DdmError where no place can be."""

    def held(self) -> Any:
        """A context in which no other process writes here, as far as the place can tell."""

    def file(self, name: str) -> Any:
        """A context with an empty binary file, which is under its name when the block has ended without an error."""

    def write(self, name: str, tree: Any) -> None:
        """Write a small file of JSON. Raises DdmError where another process has written it since this one did."""

    def holds(self, name: str, size: int, digest: str) -> bool:
        """Whether the file is there, with this size in bytes and this sha256."""


Where = str | Path | Place


def place_of(where: Where) -> Place:
    """A folder's place, or that of `s3://BUCKET/PREFIX`. Raises DdmError for other addresses, and ModuleNotFoundError
    without the extra `s3`.
    """
    if not isinstance(where, str | Path):
        return where
    if isinstance(where, str) and where.startswith(_S3):
        return Bucket(where)
    if isinstance(where, str) and re.match(r"\w[\w+.-]*://", where):
        raise DdmError(f"{where}: expected a folder, or s3://BUCKET/PREFIX")
    return Folder(Path(where).absolute())


class Folder:
    """A directory, which is made when it is first held."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def read(self, name: str) -> bytes | None:
        file = self._path / name
        return file.read_bytes() if file.exists() else None

    def occupied(self) -> bool:
        if not self._path.exists():
            return False
        if not self._path.is_dir():
            raise DdmError(f"{self} is a file; expected a directory for shards")
        return any(not _is_temporary(entry) for entry in self._path.iterdir())

    @contextmanager
    def held(self) -> Iterator[None]:
        self._path.mkdir(parents=True, exist_ok=True)
        try:
            handle = lock(self._path, wait=False)
        except BlockingIOError as error:
            raise DdmError(f"{self}: another process is making shards there") from error
        try:
            self._sweep()
            yield
            self._sweep()  # workers of a run that was killed may have lived on for some seconds
        finally:
            os.close(handle)

    @contextmanager
    def file(self, name: str) -> Iterator[BufferedRandom]:
        with atomic_file(self._path / name) as file:
            yield file

    def write(self, name: str, tree: Any) -> None:
        write_atomic(self._path / name, as_json(tree))

    def holds(self, name: str, size: int, digest: str) -> bool:
        path = self._path / name
        return path.is_file() and path.stat().st_size == size and sha256(path) == digest

    def _sweep(self) -> None:
        for entry in self._path.iterdir():
            if _is_temporary(entry):
                entry.unlink(missing_ok=True)


class Bucket:
    """A prefix in S3, or in a store that speaks as S3 does: AWS_ENDPOINT_URL names it, and credentials are found as
    boto3 finds them.
    """

    def __init__(self, url: str) -> None:
        import s3fs

        self._root = url.removeprefix(_S3).strip("/")
        self._bucket = self._root.partition("/")[0]
        if not self._bucket or "//" in self._root:
            raise DdmError(f"{url}: expected s3://BUCKET/PREFIX")
        self._store = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        self._versions: dict[str, str] = {}  # ETags of what was read or written last

    def __str__(self) -> str:
        return _S3 + self._root

    def read(self, name: str) -> bytes | None:
        with self._telling():
            try:
                # Before the content: where another process writes in between, the next write here is refused.
                self._versions[name] = self._store.info(self._key(name))["ETag"]
                return cast(bytes, self._store.cat_file(self._key(name)))
            except FileNotFoundError:
                self._versions.pop(name, None)
                return None

    def occupied(self) -> bool:
        with self._telling():
            # A console makes an empty object PREFIX/ for a folder.
            return any(not name.endswith("/") for name in self._store.find(self._root))

    @contextmanager
    def held(self) -> Iterator[None]:
        yield

    @contextmanager
    def file(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryFile() as file:  # it has no name: a process that is killed leaves nothing
            try:
                yield file
                file.flush()
            except OSError as error:
                name_place(error, Path(tempfile.gettempdir()))
                raise
            with self._telling():  # one PUT, or an upload in parts that the store puts together at its end
                file.seek(0)
                how = {"chunksize": _PART, "max_concurrency": _UPLOADS}
                self._store.put_file(f"/dev/fd/{file.fileno()}", self._key(name), **how)

    def write(self, name: str, tree: Any) -> None:
        content, version = as_json(tree).encode(), self._versions.get(name)
        condition = {"mode": "create"} if version is None else {"IfMatch": version}
        with self._telling():
            try:
                # In one PUT, whatever its size.
                answer = self._store.pipe_file(self._key(name), content, chunksize=2**32, **condition)
            except OSError as error:
                response = getattr(error.__cause__, "response", None) or {"Error": {}}
                if response["Error"].get("Code") not in _OVERTAKEN:
                    raise
                # Equal content is this process's own, whose answer was lost, or of one that begins just now too.
                if self.read(name) != content:
                    raise DdmError(f"{self}: another process is making shards there") from error
                return
        self._versions[name] = answer["ETag"]

    def holds(self, name: str, size: int, digest: str) -> bool:
        with self._telling():
            try:
                with self._store.open(self._key(name), block_size=_BLOCK) as file:
                    return bool(file.size == size and hashlib.file_digest(file, "sha256").hexdigest() == digest)
            except FileNotFoundError:
                return False

    def _key(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """What the store or its library raises, as a DdmError."""
        from aiohttp import ClientError
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        try:
            yield
        except FileNotFoundError as error:
            raise DdmError(f"{self}: there is no bucket {self._bucket}; make it first") from error
        except (PermissionError, NoCredentialsError) as error:
            raise DdmError(
                f"{self}: {error}; expected credentials that may list, read and write there, for example in "
                f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
            ) from error
        except DdmError:
            raise
        except (OSError, ValueError, BotoCoreError, ClientError) as error:  # ValueError: an endpoint that is no address
            raise DdmError(f"{self}: {error}; whole shards stay, and the same command goes on") from error


def _is_temporary(entry: Path) -> bool:
    return entry.name.startswith((".shard-", f".{MANIFEST}."))
