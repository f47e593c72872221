"""A kernel pack: a folder with cubins, their PTX and `manifest.json`, which says how each one is launched.

Reading a pack needs neither torch nor triton.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ddm_rt.kernels.ptx import Argument

SCHEMA = 1
MANIFEST = "manifest.json"

STEP_OPS = ("guided_step", "projected_guidance")  # what a step needs beside its networks

_SIZES = {"pointer": 8, "i32": 4, "scratch": 8}

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PackError(ValueError):
    """A kernel pack is missing something, altered or of another version; the message names the file and field."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(_Model):
    """A file of the pack: its name in the pack's folder and the sha256 of its bytes."""

    file: Name
    sha256: Sha256


class Kernel(_Model):
    """One kernel for one architecture, and everything that a launch of it must know; sizes are in bytes.

    A block has 32 * `num_warps` threads and `shared_bytes` of dynamic shared memory. `arguments` is the whole argument
    list in order; pointers must be multiples of `alignment`. `tile` holds block_m, block_n and num_stages (attention)
    or block (the others). `head_dim` belongs to attention, `branches` to the others, `noise` to guided_step.
    """

    name: Name
    op: Literal["indicator_attention", "guided_step", "projected_guidance"]
    entry: Name
    architecture: Annotated[str, Field(pattern=r"^sm_[0-9]{2,3}$")]
    dtype: Literal["fp16", "bf16", "fp32"]
    head_dim: Annotated[int, Field(ge=1, le=1024)] | None
    branches: Annotated[int, Field(ge=1, le=3)] | None
    noise: bool | None
    tile: dict[str, Annotated[int, Field(ge=1, le=65536)]]
    num_warps: Annotated[int, Field(ge=1, le=32)]
    shared_bytes: Annotated[int, Field(ge=0, le=256 * 1024)]
    registers: Annotated[int, Field(ge=1, le=255)]
    spill_bytes: Annotated[int, Field(ge=0, le=1 << 20)]
    tensor_core: Literal["mma.sync", "wgmma", "tcgen05"] | None
    ptx_version: Annotated[int, Field(ge=60, le=99)]
    arguments: Annotated[tuple[Argument, ...], Field(min_length=1, max_length=64)]
    ptx: File
    cubin: File
    alignment: Annotated[int, Field(ge=1, le=4096)]

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for argument in self.arguments:
            if argument.bytes != _SIZES[argument.kind]:
                raise ValueError(f"argument {argument.name} is a {argument.kind} of {argument.bytes} bytes")
        names = [argument.name for argument in self.arguments]
        if len(set(names)) != len(names):
            raise ValueError("two arguments share a name")
        own = {"indicator_attention": {"head_dim"}, "guided_step": {"branches", "noise"}}.get(self.op, {"branches"})
        if {name for name in ("head_dim", "branches", "noise") if getattr(self, name) is not None} != own:
            raise ValueError(f"head_dim, branches and noise don't fit {self.op}")
        return self


class Manifest(_Model):
    """What `manifest.json` holds."""

    schema_version: Literal[1] = Field(alias="schema")
    triton: str
    kernels: Annotated[tuple[Kernel, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique(self) -> Self:
        names = [kernel.name for kernel in self.kernels]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"two kernels are called {doubles[0]}")
        return self


@dataclass(frozen=True)
class Pack:
    """A pack whose manifest and files have been checked. `kernels` is in the manifest's order."""

    path: Path
    kernels: tuple[Kernel, ...]

    def find(self, op: str, architecture: str, **wanted: str | int) -> Kernel:
        """The one kernel whose fields (dtype and head_dim, or branches and noise) are those `wanted`.

        Raises PackError where none or several fit, naming what the pack has of this op.
        """
        of_op = [kernel for kernel in self.kernels if kernel.op == op]
        found = [
            kernel
            for kernel in of_op
            if kernel.architecture == architecture and all(getattr(kernel, key) == wanted[key] for key in wanted)
        ]
        if len(found) != 1:
            asked = ", ".join([architecture, *(f"{key} {value}" for key, value in wanted.items())])
            names = ", ".join(kernel.name for kernel in found or of_op) or f"no {op} at all"
            raise PackError(f"{self.path}: {len(found)} kernels fit {op} ({asked}); the pack has {names}")
        return found[0]

    def cubin(self, kernel: Kernel) -> bytes:
        """The kernel's code for the driver's cuModuleLoadData. Raises PackError where the file was altered."""
        return _checked(self.path, kernel.cubin)


def read_pack(path: Path | str) -> Pack:
    """The pack in folder `path`, with every field and every file's sha256 checked.

    Raises PackError for a missing or altered file and for a manifest that isn't one, naming the field.
    """
    path = Path(path)
    manifest = parse_manifest(_read(path / MANIFEST), str(path / MANIFEST))
    for kernel in manifest.kernels:
        _checked(path, kernel.cubin)
        _checked(path, kernel.ptx)
    return Pack(path, manifest.kernels)


def parse_manifest(content: bytes, name: str = MANIFEST) -> Manifest:
    """The manifest in `content`; `name` is what an error calls it. Raises PackError."""
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise PackError(f"{name}: {field}: {first['msg']}") from None


def _checked(path: Path, entry: File) -> bytes:
    content = _read(path / entry.file)
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        raise PackError(f"{path / entry.file} was altered: its sha256 is not the manifest's")
    return content


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PackError(f"{path} can't be read: {error.strerror}; expected a kernel pack there") from None
