"""The bundle: a directory whose index (`bundle.json`) holds the sha256 of every file in it.

The bundle id covers what decides an image's content: runtime.json, graphs and tokenizers (in format 1 config.json,
schedule.json and codes.json in place of the first). Plans, calibrations and reports are indexed but have ids of their
own, so adding one orphans no manifest. They are checked when they are used, not when the bundle is opened: a broken
plan keeps no other backend from running.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ConfigDict, Field

from ddm_rt.config import Frozen, ModelConfig, Sha256, parse, parse_json, parse_open
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import asset, atomic_directory, lock, locked, name_place, read, settle, sha256, write_atomic
from ddm_rt.runtime import (
    FORMAT_1,
    RUNTIME,
    TRAINING,
    CodeTable,
    RuntimeConfig,
    Training,
    changed_runtime_json,
    read_format_1,
    read_runtime,
    runtime_json,
    training_of_format_1,
)
from ddm_rt.schedule import Schedule

INDEX = "bundle.json"
FORMAT = 2  # of bundles that are written
GRAPHS = ("conditioner.onnx", "denoiser.onnx", "decoder.onnx")
TEXT_GRAPH = "text_encoder.onnx"  # of bundles that take prompts
_READ_FIRST = {1: FORMAT_1, 2: (RUNTIME,)}  # by format: what says how to sample
DERIVED = ("plans/", "calibrations/", "reports/", "tables/")  # made from a bundle, and added to it
WEIGHTS = "weights.safetensors"  # older bundles have it for torch; nothing reads it now
SETTINGS = (RUNTIME, TRAINING, *FORMAT_1)  # what `Bundle.write_settings` writes anew
_NAME_LENGTH = 64  # of what is added to a bundle
SHIPPED = ("digits",)  # bundles inside the package, by name


class FileEntry(Frozen):
    model_config = ConfigDict(extra="allow")  # a newer program's fields stay where this one adds a file

    sha256: Sha256
    bytes: int = Field(ge=0)


class Former(Frozen):
    """The bundle of an earlier format that a bundle was made from: its id, and the hashes of what the id covered beside
    graphs and tokenizers, which both have.
    """

    model_config = ConfigDict(extra="allow")

    bundle_id: Sha256
    files: dict[str, Sha256]


class _Head(Frozen):
    """What is read of bundle.json before anything else: later formats may change everything else."""

    schema_version: int


class Index(Frozen):
    """bundle.json: the list of a bundle's files, and its id."""

    model_config = ConfigDict(extra="allow")

    schema_version: int  # the bundle's format
    bundle_id: Sha256  # sha256 over the files that decide an image's content
    former: tuple[Former, ...] = ()  # what it was made from, where it was upgraded; oldest first
    files: dict[str, FileEntry]  # every file by its path in the bundle, with its hash and size
    provenance: dict[str, Any]  # how it was made; nothing depends on it

    @property
    def former_ids(self) -> tuple[str, ...]:
        """Ids that the bundle had in earlier formats, oldest first."""
        return tuple(former.bundle_id for former in self.former)


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk, checked and opened: the graphs of a model, and all that sampling needs to know of them.

    It holds no weights in memory; a `Pipeline` loads its graphs. `load` is how you get one.
    """

    path: Path  # the directory
    index: Index  # what bundle.json says
    config: RuntimeConfig  # shapes, sizes, defaults of sampling, and codes
    schedule: Schedule = field(repr=False)  # noise levels

    @classmethod
    def load(cls, source: str | Path, *, verify: bool = True) -> "Bundle":
        """Open the bundle at `source`: a directory, or the name of a shipped one ("digits").

        The hash of every file is checked, unless `verify` is false. Plans, calibrations, reports and tables, which are
        made from a bundle, are checked when they are used.

        Raises BundleError naming the first file that is missing, altered, truncated or malformed.
        """
        try:
            return cls._load(source, verify)
        except BundleError:
            raise
        except DdmError as error:  # of a field
            raise BundleError(str(error)) from error

    @classmethod
    def _load(cls, source: str | Path, verify: bool) -> "Bundle":
        path = _locate(source)
        index = _read_index(path)
        first = _READ_FIRST[index.schema_version]
        for name in (*first, *GRAPHS):
            if name not in index.files:
                raise BundleError(f"{path / INDEX}: field files: {name} is not listed; a bundle must have it")
        for name, entry in index.files.items():
            _check_name(name, path)
            if verify and not name.startswith(DERIVED):
                _check_file(path / name, entry)
        if index.bundle_id != bundle_id(index.files):
            raise BundleError(f"{path / INDEX}: field bundle_id does not match the files it lists")
        shared = {name: entry for name, entry in index.files.items() if name not in (*FORMAT_1, RUNTIME)}
        for i, former in enumerate(index.former):
            had = shared | {name: FileEntry(sha256=digest, bytes=0) for name, digest in former.files.items()}
            if former.bundle_id != bundle_id(had):
                raise BundleError(f"{path / INDEX}: field former.{i}.bundle_id does not match the files it lists")
        paths = [path / name for name in first]
        contents = [_read(place) for place in paths]
        config, schedule = read_format_1(contents, paths) if first is FORMAT_1 else read_runtime(contents[0], paths[0])
        for name in () if config.prompt_free else (TEXT_GRAPH, *(spec.tokenizer for spec in config.text)):
            if name not in index.files:
                raise BundleError(
                    f"{path / INDEX}: field files: {name} is not listed; a bundle with prompts must have it"
                )
        return cls(path, index, config, schedule)

    @property
    def bundle_id(self) -> str:
        """sha256, in 64 hexadecimal digits, over the files that decide an image's content."""
        return self.index.bundle_id

    def is_of(self, bundle_id: str) -> bool:
        """Whether that is this bundle's id, or one that it had in an earlier format. Its images are the same."""
        return bundle_id in (self.index.bundle_id, *self.index.former_ids)

    @cached_property
    def codes(self) -> CodeTable:
        """The codes that images are drawn with."""
        return CodeTable(leaves=self.config.codes, factors=self.config.factors)

    @cached_property
    def training(self) -> Training:
        """What was trained, and how. Raises DdmError naming the file and the field that is missing or wrong."""
        return parse_open(Training, self._training_json(), self._training_path)

    @cached_property
    def model(self) -> ModelConfig:
        """The networks, for programs that build them in torch.

        A field that this version doesn't know would make another network, so it is refused here. In the rest of
        training.json it is ignored. Raises DdmError as `training`.
        """
        return parse(ModelConfig, self.training.model, f"{self._training_path}: model")

    @property
    def _training_path(self) -> Path:
        return self.path / (FORMAT_1[0] if self.index.schema_version == 1 else TRAINING)

    def _training_json(self) -> str | bytes:
        if self.index.schema_version == 1:
            now = _read_index(self.path)
            if now.schema_version != 1 and self.bundle_id in now.former_ids:  # upgraded since it was opened
                return _read(self.path / TRAINING)
            return training_of_format_1(_read(self.path / FORMAT_1[0]), _read(self.path / FORMAT_1[2]))
        if TRAINING not in self.index.files:
            raise BundleError(f"{self.path / INDEX}: field files: {TRAINING} is not listed; this needs it")
        return _read(self.path / TRAINING)

    def write_settings(self, directory: Path, **changes: Any) -> None:
        """Write runtime.json, with these fields changed, and training.json into a directory that becomes a bundle.

        Raises DdmError as `training`.
        """
        config = self.config.model_copy(update=changes)
        if self.index.schema_version == 1:
            content = runtime_json(config, self.schedule)
        else:
            content = changed_runtime_json(_read(self.path / RUNTIME), config, changes)
        write_atomic(directory / RUNTIME, content)
        write_atomic(directory / TRAINING, self._training_json())

    @property
    def runtime_path(self) -> Path:
        """The file that says what the graphs take and give; error messages name it."""
        return self.path / _READ_FIRST[self.index.schema_version][0]

    @cached_property
    def graphs(self) -> dict[str, Path]:
        """Paths of the conditioner, denoiser and decoder graphs, and of the text encoder where prompts are taken."""
        names = GRAPHS if self.config.prompt_free else (TEXT_GRAPH, *GRAPHS)
        return {name.removesuffix(".onnx"): self.path / name for name in names}

    def records(self, folder: str, file: str) -> dict[str, Path]:
        """Files FOLDER/NAME/FILE among those that were added to the bundle, by name."""
        parts = [name.split("/") for name in sorted(self.index.files)]
        return {part[1]: self.path.joinpath(*part) for part in parts if [part[0], *part[2:]] == [folder, file]}

    def check_directory(self, relative: str) -> None:
        """Check every file that the index lists below `relative`, for example `plans/NAME`.

        Raises BundleError naming the first one that is missing, truncated or altered, or when none is listed.
        """
        listed = {name: entry for name, entry in self.index.files.items() if name.startswith(f"{relative}/")}
        if not listed:
            raise BundleError(f"{self.path / INDEX}: field files: nothing below {relative} is listed")
        for name, entry in listed.items():
            _check_file(self.path / name, entry)


def bundle_id(files: dict[str, FileEntry]) -> str:
    """sha256 over the names and hashes of the files that decide an image's content."""
    digest = hashlib.sha256()
    for name in sorted(files):
        graph = name.split(".onnx")[0] + ".onnx"
        if name in (*FORMAT_1, RUNTIME) or name.startswith("tokenizer/") or graph in (*GRAPHS, TEXT_GRAPH):
            digest.update(f"{name}\0{files[name].sha256}\n".encode())
    return digest.hexdigest()


def write_bundle(out: Path, fill: Callable[[Path], None], provenance: dict[str, Any]) -> Bundle:
    """Let `fill` write the files into a temporary directory beside `out`, index them, then rename: all or nothing.

    Raises DdmError when `out` exists and is not empty.
    """
    with atomic_directory(out) as temporary:
        fill(temporary)
        files = entries(temporary)
        index = Index(schema_version=FORMAT, bundle_id=bundle_id(files), files=files, provenance=provenance)
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
    with locked(bundle.path):
        _sweep(out)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        in_use = lock(temporary)
    try:
        fill(temporary)
        settle(temporary)
        added = {f"{relative}/{name}": entry for name, entry in entries(temporary).items()}
        with locked(bundle.path):
            _replace_directory(bundle, relative, temporary, added)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        name_place(error, out)
        raise
    finally:
        os.close(in_use)
    return Bundle.load(bundle.path)


def check_name(kind: str, name: str) -> None:
    """Raises DdmError for what can't be the name of a directory that `add_directory` adds; `kind` is what it names."""
    fits = name[:1] not in ("", ".") and all(letter.isalnum() or letter in "-_." for letter in name)
    if not (fits and len(name) <= _NAME_LENGTH):
        raise DdmError(f"{kind} name {name!r}; expected letters, digits, - _ and . (not first), {_NAME_LENGTH} at most")


def _replace_directory(bundle: Bundle, relative: str, new: Path, added: dict[str, FileEntry]) -> None:
    index = _read_index(bundle.path)  # others may have added to it, or have upgraded the bundle
    if bundle.bundle_id not in (index.bundle_id, *index.former_ids):
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


def _sweep(out: Path) -> None:
    """Remove what processes that were killed have left beside `out`; those that live hold a lock on theirs."""
    for left in out.parent.glob(f".{out.name}.*"):
        try:
            handle = lock(left, wait=False)
        except BlockingIOError:
            continue
        shutil.rmtree(left)
        os.close(handle)


def is_writable(bundle: Bundle) -> bool:
    """Whether something may be added to the bundle: not to those that ship in the package."""
    return bundle.path not in map(asset, SHIPPED) and os.access(bundle.path, os.W_OK)


def check_writable(bundle: Bundle, copy: str) -> None:
    """Raises DdmError where nothing may be added to the bundle; `copy` says what --out DIR does to a copy of it."""
    if not is_writable(bundle):
        raise DdmError(f"{bundle.path}: can't be written to; --out DIR {copy} a copy of the bundle")


def _read_index(path: Path) -> Index:
    content = _read(path / INDEX)
    version = parse_open(_Head, content, path / INDEX).schema_version
    if version not in _READ_FIRST:
        known = " and ".join(map(str, _READ_FIRST))
        raise BundleError(f"{path / INDEX}: schema_version is {version}; this version reads {known}")
    return parse_json(Index, content, path / INDEX)


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
    return read(path, "a bundle must have it", BundleError)


def entries(directory: Path, names: Iterable[str] | None = None) -> dict[str, FileEntry]:
    """What the index says of these files in `directory`; None: of every file below it."""
    if names is None:
        names = sorted(file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file())
    paths = {name: directory / name for name in names}
    return {name: FileEntry(sha256=sha256(path), bytes=path.stat().st_size) for name, path in paths.items()}
