"""Plans in a bundle: what each was made from, which one fits this machine, and what differs where none does.

A plan is one directory, `plans/<flavour>-<architecture>[-<gpu>]/`: a serialized engine of each graph, `key.json`, and
`kernels/` with a step's own kernels where they could be compiled. "The file exists" is no reason to take it.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen, Precision, Sha256, parse_json
from ddm_rt.engine.tensorrt import flavours
from ddm_rt.engine.tensorrt.flavours import Flavour
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import read

ROOT = "plans"
KEY = "key.json"
KERNELS = "kernels"
NO_GPU = "none"  # the GPU of a plan that was built without one: it fits every GPU of its architecture
ENGINES = ("conditioner", "denoiser", "decoder")  # of every plan; with prompts also a text encoder's

Size = Annotated[int, Field(ge=1)]
Shape = tuple[int, ...]


class Range(Frozen):
    """One axis of an optimization profile: the sizes that a plan takes, and the one it is tuned for."""

    min: Size
    opt: Size
    max: Size


Ranges = Annotated[tuple[Range, ...], Field(min_length=1)]  # by the size that each is tuned for, ascending


class Options(Frozen):
    """What a builder was told. Another value of any of them is another plan."""

    batch: Ranges  # of the denoiser, an optimization profile each
    decoder_batch: Ranges
    height: Range  # of the latents
    width: Range
    tokens: Range  # T, of the text
    precision: Precision  # of the graphs; the networks are strongly typed
    plain: bool  # attention of plain operators, where the flavour has a plugin for it

    def batches(self, engine: str) -> Ranges:
        """Batch ranges of an engine's profiles. Text encoder and conditioner make their rows one by one."""
        alone = (Range(min=1, opt=1, max=self.batch[-1].max),)
        return {"denoiser": self.batch, "decoder": self.decoder_batch}.get(engine, alone)


class Parts(Frozen):
    """All that a plan was made from; the key is its sha256."""

    bundle_id: Sha256
    graphs: dict[str, Sha256]  # file in the bundle, external data included -> sha256
    options: Options
    flavour: str
    version: str  # of the flavour's package
    gpu: str  # the name of the device it was measured on, or "none"
    architecture: Annotated[str, Field(pattern="^sm_[0-9]+$")]


class EngineFile(Frozen):
    """One serialized engine, and the shapes that its profiles take."""

    file: Annotated[str, Field(pattern=r"^[a-z_]+\.plan$")]
    sha256: Sha256
    bytes: Size
    profiles: tuple[dict[str, tuple[Shape, Shape, Shape]], ...]  # of each: input -> min, opt, max


class Key(Frozen):
    """key.json."""

    schema_version: Literal[2] = 2  # 1: engines of one profile, which TensorRT-RTX could not capture
    key: Sha256
    parts: Parts
    engines: dict[str, EngineFile]
    kernels: str | None  # why there is no pack of kernels; None where there is one
    build: dict[str, dict[str, float]] = Field(default_factory=dict)  # engine -> figures of its build


@dataclass(frozen=True)
class Plan:
    """A plan of a bundle whose key was read."""

    path: Path
    key: Key

    @property
    def name(self) -> str:
        return self.path.name

    def engine(self, name: str) -> Path:
        """Path of the serialized `conditioner`, `denoiser`, `decoder` or `text_encoder`."""
        return self.path / self.key.engines[name].file

    def read(self, name: str) -> bytes:
        """The serialized engine's bytes. Raises BundleError where they aren't those that the key says."""
        path, content = self.engine(name), self.engine(name).read_bytes()
        if hashlib.sha256(content).hexdigest() != self.key.engines[name].sha256:
            raise BundleError(f"{path}: its sha256 differs from the one in {KEY} (engine {name})")
        return content


def digest(parts: Parts) -> str:
    """The plan cache key: sha256 of the parts as JSON with sorted names."""
    return hashlib.sha256(json.dumps(parts.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def directory_name(flavour: str, architecture: str, gpu: str) -> str:
    """The plan's directory under plans/: one for each flavour, architecture and, where it was measured on one, GPU."""
    slug = "" if gpu == NO_GPU else "-" + re.sub("[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return f"{flavour}-{architecture}{slug}"


def graph_files(bundle: Bundle, flavour: Flavour, plain: bool = False) -> dict[str, str]:
    """The files that the flavour's plans are built from (graphs and their external data) with their sha256.

    Raises BundleError where the bundle lacks the variant of the denoiser.
    """
    denoiser = flavour.denoiser(bundle.config.precision, plain)
    if denoiser not in bundle.index.files:
        ways = "`ddm-rt export --plugin` writes it, and `ddm-rt build --plain` needs none"
        raise BundleError(f"{bundle.path}: {denoiser} is missing; {flavour.name} needs it: {ways}")
    graphs = {name: f"{name}.onnx" for name in bundle.graphs} | {"denoiser": denoiser}
    data = (f"{name}.onnx.data" for name in bundle.graphs)
    files = [*graphs.values(), *(name for name in data if name in bundle.index.files)]
    return {name: bundle.index.files[name].sha256 for name in sorted(files)}


def read_key(path: Path) -> Key:
    """key.json at `path`. Raises DdmError naming the field that is malformed, or a key that isn't its parts'."""
    try:
        key = parse_json(Key, read(path, "a plan must have it"), path)
    except DdmError as error:
        if "schema_version" in str(error):
            raise DdmError(f"{path}: of another version of ddm_rt; `ddm-rt build` makes the plan again") from error
        raise
    if key.key != digest(key.parts):
        raise DdmError(f"{path}: field key is not that of its parts")
    for name in ENGINES:
        if name not in key.engines:
            raise DdmError(f"{path}: field engines: {name} is not listed; a plan must have it")
    return key


def names(bundle: Bundle) -> tuple[str, ...]:
    """The plans that the bundle's index lists."""
    found = (name.split("/") for name in bundle.index.files)
    return tuple(sorted({parts[1] for parts in found if parts[0] == ROOT and len(parts) > 2}))


def review(bundle: Bundle, name: str, device: tuple[str, str] | None) -> list[str]:
    """What keeps the plan of that name from running here, in words; nothing where it fits.

    `device` is (architecture, name) of the GPU, or None where there is none: then what can be checked without is.
    """
    path = bundle.path / ROOT / name
    try:
        plan = Plan(path, read_key(path / KEY))
        flavour = flavours.flavour(plan.key.parts.flavour)
        check_files(bundle, plan)
        if (reason := flavours.unavailable(flavour)) is not None:
            return [*differences(bundle, plan.key, flavour), reason]
        return differences(bundle, plan.key, flavour, flavours.version(flavour), device)
    except DdmError as error:
        return [str(error)]


def differences(
    bundle: Bundle, key: Key, flavour: Flavour, version: str | None = None, device: tuple[str, str] | None = None
) -> list[str]:
    """What keeps a plan from this bundle, flavour and `device` (architecture, name), in words; nothing where it fits.

    What is None isn't compared. A plan that was built without a GPU fits every one of its architecture.
    """
    parts, found = key.parts, []
    if version not in (None, parts.version):
        found.append(f"it was built by version {parts.version}; {version} is installed")
    if parts.flavour != flavour.name:
        found.append(f"it is for {parts.flavour}, not {flavour.name}")
    if device is not None:
        architecture, gpu = device
        if parts.architecture != architecture:
            found.append(f"it is for {parts.architecture}; this GPU is {architecture}")
        if parts.gpu not in (NO_GPU, gpu):
            found.append(f"it was built on {parts.gpu}; this GPU is {gpu}")
    graphs = graph_files(bundle, flavour, parts.options.plain)
    if changed := sorted({name for name, _ in graphs.items() ^ parts.graphs.items()}):
        kind = "other graphs" if parts.bundle_id != bundle.bundle_id else "graphs that have changed"
        found.append(f"it was built from {kind} ({', '.join(changed)} differ)")
    return found


def find(bundle: Bundle, flavour: Flavour, version: str, architecture: str, gpu: str) -> Plan:
    """The bundle's plan for this flavour and device, its files checked against bundle.json and key.json.

    Raises DdmError: no plan, or the name of each plan of the flavour that was refused with what differs.
    """
    refused = []
    for name in names(bundle):
        path = bundle.path / ROOT / name
        if not name.startswith(f"{flavour.name}-sm_"):
            continue
        try:
            plan = Plan(path, read_key(path / KEY))
            why = differences(bundle, plan.key, flavour, version, (architecture, gpu))
            if not why:
                check_files(bundle, plan)
                return plan
        except DdmError as error:
            why = [str(error)]
        refused.append(f"plan {name} is refused: {' and '.join(why)}")
    command = f"ddm-rt build {bundle.path} --backend {flavour.name}" + (
        f" --sm {architecture.removeprefix('sm_')}" if flavour.architectures else ""
    )
    raise DdmError("; ".join([*refused, f"no plan of {flavour.name} for {architecture}; `{command}` makes one"]))


def check_files(bundle: Bundle, plan: Plan) -> None:
    """Raises BundleError where an engine or a file of the plan is missing, truncated or altered.

    Gigabytes are hashed once: in this process, files are taken as whole until the system says that they were touched.
    """
    if missing := [name for name in bundle.graphs if name not in plan.key.engines]:
        raise BundleError(f"{plan.path / KEY}: field engines: {missing[0]} is not listed; this bundle's plans have it")
    stamp = _stamp(bundle, plan)
    if stamp not in _WHOLE:
        bundle.check_directory(f"{ROOT}/{plan.name}")
        _WHOLE.add(stamp)
    for name, engine in plan.key.engines.items():
        entry = bundle.index.files.get(f"{ROOT}/{plan.name}/{engine.file}")
        if entry is None or entry.sha256 != engine.sha256:
            raise BundleError(f"{plan.path / engine.file}: its sha256 differs from the one in {KEY} (engine {name})")


_Stamp = tuple[tuple[Path, str, tuple[int, ...]], ...]
_WHOLE: set[_Stamp] = set()


def _stamp(bundle: Bundle, plan: Plan) -> _Stamp:
    """Of each file that the index lists for the plan: the hash that it should have, and what changes with its bytes."""
    found = []
    for name, entry in bundle.index.files.items():
        path = (bundle.path / name).absolute()
        if name.startswith(f"{ROOT}/{plan.name}/") and path.is_file():
            status = path.stat()
            touched = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            found.append((path, entry.sha256, touched))
    return tuple(found)
