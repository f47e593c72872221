"""Compiled networks: AOTInductor's packages, native code that `ddm-rt build --backend torch` made on this machine.

They lie in a cache of the user's, never in a bundle: opening a stranger's bundle runs none of its code. Each record is
signed with a secret of the cache, so that a package which somebody else put there is refused. Weights stay in the
bundle's graphs; a record says which tensor of them is which constant of the code.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor

# Registers the op that compiled code calls by its name.
import ddm_rt.kernels.indicator_attention.op as _registered  # noqa: F401
from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen, Precision, Sha256, parse_json
from ddm_rt.engine import user_cache
from ddm_rt.engine.devices import CUDA, Device
from ddm_rt.engine.machine import installed, processor
from ddm_rt.engine.torch.networks import DTYPES, Origin, Signature, read
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256, write_atomic
from ddm_rt.runtime import TensorSpec

RECORD, SIGNATURE = "package.json", "package.json.hmac"
EXTRAS = "constants.safetensors"  # those that lie in no graph

_Shape = tuple[int, ...]


class Made(Frozen):
    """On what a package was compiled. It runs where all of it is the same."""

    bundle_id: Sha256
    precision: Precision
    device: str  # "cpu" or "cuda"
    processor: str  # of that device
    torch: str
    triton: str | None


class Constant(Origin):
    """A constant of compiled code, as it lies in a graph of the bundle."""

    dtype: Precision


class Code(Frozen):
    """One network, compiled for the shapes of its inputs."""

    file: Annotated[str, Field(pattern=r"^[a-z_]+-[0-9]+\.pt2$")]
    sha256: Sha256
    network: str
    inputs: dict[str, _Shape]
    outputs: tuple[str, ...]
    dtype: Precision
    constants: dict[str, Constant]
    extras: tuple[str, ...]  # names in `EXTRAS`
    seconds: float  # that compiling took

    @property
    def batch(self) -> int:
        return next(iter(self.inputs.values()))[0]


class Record(Frozen):
    """package.json."""

    schema_version: Literal[2] = 2  # since 2 the denoiser is given keys and values
    made: Made
    extras: Sha256
    codes: tuple[Code, ...]


@dataclass(frozen=True)
class Package:
    """Compiled networks of a bundle in one precision for one kind of device."""

    path: Path
    record: Record

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes of the denoiser and the decoder, ascending."""
        return tuple(sorted(code.batch for code in self.record.codes if code.network == "denoiser"))

    @property
    def latents(self) -> tuple[int, int]:
        """Height and width of the latents that they take."""
        height, width = next(code.inputs["x_t"] for code in self.record.codes if code.network == "denoiser")[2:]
        return height, width


def place(bundle: Bundle, precision: Precision, device: Device) -> Path:
    """Where the package of a bundle lies."""
    return user_cache.root() / "torch" / f"{bundle.bundle_id[:16]}-{precision}-{device.kind}"


def made_here(bundle: Bundle, precision: Precision, device: Device) -> Made:
    """What a package that runs here was made on. Raises DdmError where there is no such device."""
    on_gpu = device.kind == CUDA
    if on_gpu and device.ordinal >= torch.cuda.device_count():
        raise DdmError(f"no CUDA device {device.ordinal}: torch finds {torch.cuda.device_count()}")
    return Made(
        bundle_id=bundle.bundle_id,
        precision=precision,
        device=device.kind,
        processor=torch.cuda.get_device_name(device.ordinal) if on_gpu else processor(),
        torch=torch.__version__,
        triton=installed("triton") if on_gpu else None,
    )


def find(bundle: Bundle, precision: Precision, device: Device) -> Package | None:
    """The package for this bundle, None where none was built.

    Raises DdmError naming a package that was made by somebody else, or for another device or version, or has changed.
    """
    path = place(bundle, precision, device)
    if not path.is_dir():
        return None
    how = f"`{command(bundle, precision, device)} --force` builds it again"
    content = _authentic(path, how)
    record = parse_json(Record, content, path / RECORD)
    here = made_here(bundle, precision, device)
    for field in Made.model_fields:
        recorded, present = getattr(record.made, field), getattr(here, field)
        if recorded != present:
            raise DdmError(f"{path}: compiled for {field} {recorded}; this is {present}; {how}")
    for file, expected in ((EXTRAS, record.extras), *((code.file, code.sha256) for code in record.codes)):
        if not (path / file).is_file() or sha256(path / file) != expected:
            raise DdmError(f"{path / file}: missing or altered; {how}")
    return Package(path, record)


def spoilt(bundle: Bundle, precision: Precision, device: Device) -> bool:
    """Whether there is a package that `find` refuses."""
    try:
        find(bundle, precision, device)
    except DdmError:
        return True
    return False


def sign(path: Path, record: Record) -> None:
    """Write a package's record, and what says that it was made here."""
    content = record.model_dump_json(indent=1).encode()
    write_atomic(path / RECORD, content)
    write_atomic(path / SIGNATURE, user_cache.sign(content))


def command(bundle: Bundle, precision: Precision, device: Device) -> str:
    """The command that builds the package."""
    where = "" if device.kind != CUDA else f" --device {device}"
    return f"ddm-rt build {bundle.path} --backend torch --precision {precision}{where}"


class Packaged:
    """`engine.torch.networks.Networks` of compiled code."""

    def __init__(self, bundle: Bundle, package: Package, device: torch.device) -> None:
        record = package.record
        self.device, self.precision = device, record.made.precision
        self.sizes: tuple[int, ...] | None = package.sizes
        self.signatures = {
            code.network: Signature(tuple(code.inputs), code.outputs, DTYPES[code.dtype]) for code in record.codes
        }
        denoiser = next(code for code in record.codes if code.network == "denoiser")
        self.cond = tuple(
            TensorSpec(name=name, shape=shape[1:])
            for name, shape in denoiser.inputs.items()
            if name not in ("x_t", "t")
        )
        digest = hashlib.sha256("".join(code.sha256 for code in record.codes).encode()).hexdigest()
        self.versions = {"compiled": digest[:16]}
        self._bundle, self._package = bundle, package
        self._codes = {(code.network, *code.inputs.values()): code for code in record.codes}
        self._constants: dict[tuple[str, Constant], Tensor] = {}
        self._kept: list[dict[str, Tensor]] = []  # the code holds their addresses alone
        self._open: dict[str, torch._C._aoti.AOTIModelPackageLoader] = {}  # by file

    def __call__(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        code = self._codes.get((name, *(tuple(value.shape) for value in inputs)))
        if code is None:
            raise DdmError(self._missing(name, inputs))
        if code.file not in self._open:
            self._open[code.file] = self._loaded(code)
        return tuple(self._open[code.file].boxed_run(list(inputs)))

    def _loaded(self, code: Code) -> "torch._C._aoti.AOTIModelPackageLoader":
        # Single-threaded: the engine makes one call at a time, and CUDA graphs take no other.
        index = -1 if self.device.type == "cpu" else self.device.index or 0
        loader = torch._C._aoti.AOTIModelPackageLoader(str(self._package.path / code.file), "model", True, 1, index)
        extras = load_file(self._package.path / EXTRAS, device=str(self.device))
        constants = {name: extras[name] for name in code.extras}
        constants |= self._weights(code)
        loader.load_constants(constants, False, True, True, False)
        self._kept.append(constants)
        return loader

    def _weights(self, code: Code) -> dict[str, Tensor]:
        """The code's constants; codes of several batch sizes share their memory."""
        new = {name: constant for name, constant in code.constants.items() if (name, constant) not in self._constants}
        for name, weight in read(self._bundle, new).items():
            dtype = DTYPES[new[name].dtype]
            layout = torch.channels_last if weight.dim() == 4 and dtype is not torch.float32 else torch.preserve_format
            self._constants[name, new[name]] = weight.to(self.device, dtype, memory_format=layout)
        return {name: self._constants[name, constant] for name, constant in code.constants.items()}

    def _missing(self, name: str, inputs: tuple[Tensor, ...]) -> str:
        given = dict(zip(self.signatures[name].inputs, (list(value.shape) for value in inputs), strict=True))
        built = sorted(
            {str(list(next(iter(code.inputs.values())))) for code in self._codes.values() if code.network == name}
        )
        made = self._package.record.made
        device = Device(made.device, self.device.index or 0)
        return (
            f"{self._package.path}: no {name} is compiled for {given}, those there begin with {', '.join(built)}; "
            f"`{command(self._bundle, made.precision, device)} --batch ... --size ...` builds others"
        )


def _authentic(path: Path, how: str) -> bytes:
    """The record's bytes. Raises DdmError where this user's cache didn't sign them."""
    try:
        content, signed = (path / RECORD).read_bytes(), (path / SIGNATURE).read_bytes()
    except OSError as error:
        raise DdmError(f"{path}: incomplete ({error.strerror}: {Path(error.filename).name}); {how}") from error
    if not user_cache.signed_here(content, signed):
        raise DdmError(f"{path}: was not built here, and compiled code of others is never run; {how}")
    return content
