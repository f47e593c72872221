"""The bundle: a directory whose index (`bundle.json`) holds the sha256 of every file in it.

The bundle id covers what decides an image's content (config, schedule, codes, graphs, tokenizer); plans,
calibrations and reports are indexed but have ids of their own, so adding one orphans no manifest. They are checked
when they are used, not when the bundle is opened: a broken plan keeps no other backend from running.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from ddm_rt.config import BundleConfig, Frozen, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.schedule import Schedule

INDEX = "bundle.json"
GRAPHS = ("conditioner.onnx", "denoiser.onnx", "decoder.onnx")
TEXT_GRAPH = "text_encoder.onnx"  # of bundles that take prompts
_ID_FILES = ("config.json", "schedule.json", "codes.json")
DERIVED = ("plans/", "calibrations/", "reports/", "tables/")  # made from a bundle, and added to it
SHIPPED = ("digits",)  # bundles inside the package, by name


class FileEntry(Frozen):
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Index(Frozen):
    """bundle.json."""

    schema_version: int
    bundle_id: str = Field(pattern="^[0-9a-f]{64}$")
    files: dict[str, FileEntry]
    provenance: dict[str, Any]


class Leaf(Frozen):
    """One code: its top code, how many training images it holds, and its share of the top code's images."""

    code: int = Field(ge=0)
    top_code: int = Field(ge=0)
    size: int = Field(ge=0)
    share_in_top: float = Field(ge=0, le=1)


class Codes(Frozen):
    """codes.json: what discovery found. Codes are modes of the data and never claimed to be groups."""

    schema_version: int = 1
    origin: str  # "discovered", "probe" (labels defined them), "file:NAME" or "none"
    leaves: tuple[Leaf, ...] = ()
    tree: tuple[tuple[int, int, float], ...] = ()  # merges as scipy's linkage: children, height
    exemplars: tuple[tuple[int, ...], ...] = ()  # per code, indices of typical training images
    stability_ari: tuple[float, ...] = ()  # adjusted Rand index of the top codes under each bootstrap
    rule: dict[str, Any] = Field(default_factory=dict)  # settings that found them

    @property
    def num_codes(self) -> int:
        return len(self.leaves)

    @property
    def num_top_codes(self) -> int:
        return len({leaf.top_code for leaf in self.leaves})

    @property
    def top_of(self) -> tuple[int, ...]:
        """The top code of each code."""
        return tuple(leaf.top_code for leaf in self.leaves)


@dataclass(frozen=True)
class Bundle:
    """A checked, opened bundle directory."""

    path: Path
    index: Index
    config: BundleConfig
    codes: Codes
    schedule: Schedule = field(repr=False)

    @classmethod
    def load(cls, source: str | Path, *, verify: bool = True) -> "Bundle":
        """Open the bundle at `source` (a directory, or the name of a shipped one) and check every file but `DERIVED`.

        Raises BundleError naming the first file that is missing, altered, truncated or malformed.
        """
        path = _locate(source)
        index = parse_json(Index, _read(path / INDEX), path / INDEX)
        if index.schema_version != 1:
            raise BundleError(f"{path / INDEX}: schema_version is {index.schema_version}; this version reads 1")
        for name in (*_ID_FILES, *GRAPHS):
            if name not in index.files:
                raise BundleError(f"{path / INDEX}: field files: {name} is not listed; a bundle must have it")
        for name, entry in index.files.items():
            _check_name(name, path)
            if verify and not name.startswith(DERIVED):
                _check_file(path / name, entry)
        if index.bundle_id != bundle_id(index.files):
            raise BundleError(f"{path / INDEX}: field bundle_id does not match the files it lists")
        config = parse_json(BundleConfig, _read(path / "config.json"), path / "config.json")
        for name in () if config.prompt_free else (TEXT_GRAPH, *(spec.tokenizer for spec in config.text)):
            if name not in index.files:
                raise BundleError(
                    f"{path / INDEX}: field files: {name} is not listed; a bundle with prompts must have it"
                )
        return cls(
            path=path,
            index=index,
            config=config,
            codes=parse_json(Codes, _read(path / "codes.json"), path / "codes.json"),
            schedule=Schedule.from_json(_read(path / "schedule.json"), path / "schedule.json"),
        )

    @property
    def bundle_id(self) -> str:
        return self.index.bundle_id

    @cached_property
    def graphs(self) -> dict[str, Path]:
        """Paths of the conditioner, denoiser and decoder graphs, and of the text encoder where prompts are taken."""
        names = GRAPHS if self.config.prompt_free else (TEXT_GRAPH, *GRAPHS)
        return {name.removesuffix(".onnx"): self.path / name for name in names}

    def check_directory(self, relative: str) -> None:
        """Check every file that the index lists below `relative`, for example `plans/NAME`.

        Raises BundleError naming the first one that is missing, truncated or altered, or when none is listed.
        """
        listed = {name: entry for name, entry in self.index.files.items() if name.startswith(f"{relative}/")}
        if not listed:
            raise BundleError(f"{self.path / INDEX}: field files: nothing below {relative} is listed")
        for name, entry in listed.items():
            _check_file(self.path / name, entry)

    @property
    def weights(self) -> Path | None:
        """weights.safetensors, where the bundle was exported with `--with-weights`."""
        return self.path / "weights.safetensors" if "weights.safetensors" in self.index.files else None


def bundle_id(files: dict[str, FileEntry]) -> str:
    """sha256 over the names and hashes of the files that decide an image's content."""
    digest = hashlib.sha256()
    for name in sorted(files):
        graph = name.split(".onnx")[0] + ".onnx"
        if name in _ID_FILES or name.startswith("tokenizer/") or graph in (*GRAPHS, TEXT_GRAPH):
            digest.update(f"{name}\0{files[name].sha256}\n".encode())
    return digest.hexdigest()


def write_bundle(out: Path, fill: Callable[[Path], None], provenance: dict[str, Any]) -> Bundle:
    """Let `fill` write the files into a temporary directory beside `out`, index them, then rename: all or nothing.

    Raises DdmError when `out` exists and is not empty.
    """
    with atomic_directory(out) as temporary:
        fill(temporary)
        files = _entries(temporary)
        index = Index(schema_version=1, bundle_id=bundle_id(files), files=files, provenance=provenance)
        (temporary / INDEX).write_text(index.model_dump_json(indent=1))
        Bundle.load(temporary)
    return Bundle.load(out)


def copy_bundle(bundle: Bundle, out: Path) -> Bundle:
    """A copy of the files that the index lists, at `out`. Raises DdmError when `out` exists and is not empty."""
    with atomic_directory(out) as temporary:
        for name in (INDEX, *bundle.index.files):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, temporary / name)
        Bundle.load(temporary)
    return Bundle.load(out)


def add_directory(bundle: Bundle, relative: str, fill: Callable[[Path], None]) -> Bundle:
    """Let `fill` write into a temporary directory inside the bundle, rename it to `relative` and index its files.

    `relative` lies below one of `DERIVED`, so that the bundle id stays; one of that name is replaced as a whole.
    On any error nothing has changed. A machine that stops between the renames and the index leaves a bundle that
    opens, and a directory that `check_directory` refuses.

    Raises BundleError where another process has changed the bundle's own files meanwhile.
    """
    _check_name(relative, bundle.path)
    if not relative.startswith(DERIVED):
        raise ValueError(f"{relative!r} is not below any of {', '.join(DERIVED)}")
    out = bundle.path / relative
    out.parent.mkdir(parents=True, exist_ok=True)
    with _locked(bundle.path):
        _sweep(out)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        in_use = _lock(temporary)
    try:
        fill(temporary)
        _settle(temporary)
        added = {f"{relative}/{name}": entry for name, entry in _entries(temporary).items()}
        with _locked(bundle.path):
            _replace_directory(bundle, relative, temporary, added)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_place(error, out)
        raise
    finally:
        os.close(in_use)
    return Bundle.load(bundle.path)


def _replace_directory(bundle: Bundle, relative: str, new: Path, added: dict[str, FileEntry]) -> None:
    index = parse_json(Index, _read(bundle.path / INDEX), bundle.path / INDEX)  # others may have added to it
    if index.bundle_id != bundle.bundle_id:
        raise BundleError(f"{bundle.path}: its own files were changed while {relative} was made; run the command again")
    kept = {name: entry for name, entry in index.files.items() if not name.startswith(f"{relative}/")}
    out, old = bundle.path / relative, None
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        out.rename(old)
    try:
        new.rename(out)
        files = dict(sorted((kept | added).items()))
        write_atomic(bundle.path / INDEX, index.model_copy(update={"files": files}).model_dump_json(indent=1))
    except BaseException:
        if out.exists():
            out.rename(new)
        if old is not None:
            old.rename(out)
        raise
    if old is not None:
        shutil.rmtree(old)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """One process at a time reads and rewrites the index; the lock goes with the process that holds it."""
    handle = _lock(directory)
    try:
        yield
    finally:
        os.close(handle)


def _lock(directory: Path, *, wait: bool = True) -> int:
    """A handle that holds the directory's lock. Raises BlockingIOError where another holds it and `wait` is false."""
    import fcntl

    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(handle)
        raise
    return handle


def _sweep(out: Path) -> None:
    """Remove what processes that were killed have left beside `out`; those that live hold a lock on theirs."""
    for left in out.parent.glob(f".{out.name}.*"):
        try:
            handle = _lock(left, wait=False)
        except BlockingIOError:
            continue
        shutil.rmtree(left)
        os.close(handle)


def check_writable(bundle: Bundle, copy: str) -> None:
    """Raises DdmError where nothing may be added to the bundle; `copy` says what --out DIR does to a copy of it."""
    if bundle.path in {asset(name) for name in SHIPPED} or not os.access(bundle.path, os.W_OK):
        raise DdmError(f"{bundle.path}: can't be written to; --out DIR {copy} a copy of the bundle")


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
        _settle(temporary)
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_place(error, out)
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name, fsync, rename: a reader sees the old file or the whole new one."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        _name_place(error, path)
        raise


def _name_place(error: BaseException, path: Path) -> None:
    """The system doesn't say where a write failed: a full disk shows in a write to an open file, without a name."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)


def write_json(path: Path, tree: Any) -> None:
    """`write_atomic` of indented JSON; NaN and infinities are refused."""
    write_atomic(path, json.dumps(tree, indent=1, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def asset(name: str) -> Path:
    """Path of a file or directory that ships in the package."""
    return Path(str(resources.files("ddm_rt") / "assets" / name))


def _locate(source: str | Path) -> Path:
    path = Path(source)
    if not path.exists() and str(source) in SHIPPED:
        path = asset(str(source))
    if not path.is_dir():
        raise BundleError(f"bundle {str(source)!r}: no such directory; shipped bundles: {', '.join(SHIPPED)}")
    if not (path / INDEX).is_file():
        raise BundleError(f"{path}: not a bundle ({INDEX} is missing); a run is made into one by `ddm-rt export`")
    return path


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in name:
        raise BundleError(f"{path / INDEX}: field files: {name!r} is not a path inside the bundle")


def _check_file(path: Path, entry: FileEntry) -> None:
    if not path.is_file():
        raise BundleError(f"{path}: missing; {INDEX} lists it with {entry.bytes} bytes")
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(f"{path}: truncated or extended: {size} bytes, {INDEX} says {entry.bytes}")
    if sha256(path) != entry.sha256:
        raise BundleError(f"{path}: altered: its sha256 differs from the one in {INDEX}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); a bundle must have it") from error


def _entries(directory: Path) -> dict[str, FileEntry]:
    return {
        file.relative_to(directory).as_posix(): FileEntry(sha256=sha256(file), bytes=file.stat().st_size)
        for file in sorted(directory.rglob("*"))
        if file.is_file()
    }


def _settle(temporary: Path) -> None:
    """Before a temporary directory gets its name: readable by others, and on the disk."""
    temporary.chmod(0o755)
    for path in temporary.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
