"""Compiles the shipped kernels for a named GPU architecture, on a machine that needs no GPU.

triton, and the kernels that need it, are imported inside the functions: this module imports without them.
"""

import contextlib
import functools
import importlib.util
import io
import os
import re
import tempfile
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ddm_rt.kernels import ptx as reading
from ddm_rt.kernels.guided_step.table import GUIDED_STEP_BLOCK, GUIDED_STEP_WARPS, POINTEES, variants
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES, DTYPES, HEAD_DIMS, Tile
from ddm_rt.kernels.indicator_attention.table import tile as shipped_tile
from ddm_rt.kernels.ptx import Argument, Kind

# Every pointer that is passed to a kernel must be a multiple of this many bytes, on which the vector loads rely.
# cuMemAlloc and TensorRT give 256.
ALIGNMENT = 16

# The PTX version from which an architecture exists. Below it LLVM ends the whole process, so it is checked first.
MINIMUM_PTX = {"sm_80": 70, "sm_86": 71, "sm_89": 78, "sm_90": 80, "sm_100": 86, "sm_120": 87}

# Shared memory that one block may ask for, in bytes (CUDA C programming guide, compute capabilities).
SHARED_BYTES = {
    "sm_80": 163 * 1024,
    "sm_86": 99 * 1024,
    "sm_89": 99 * 1024,
    "sm_90": 227 * 1024,
    "sm_100": 227 * 1024,
    "sm_120": 99 * 1024,
}

_TENSORS = ("q", "k", "v", "k_ind", "v_ind", "out")

_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")


class AotError(RuntimeError):
    """Nothing can be compiled here, or a compiled kernel breaks what a launch relies on; one sentence says which."""


@dataclass(frozen=True)
class Compiled:
    """One kernel for one architecture: its code and everything that a launch must know.

    A block has 32 * `num_warps` threads and `shared_bytes` of dynamic shared memory. `arguments` is the whole argument
    list in order; pointers are multiples of `ALIGNMENT`. `tile` holds block_m, block_n, num_stages (attention) or block
    (guided_step). `head_dim` belongs to attention, `branches` and `noise` to guided_step.
    """

    name: str
    op: str
    entry: str
    architecture: str
    dtype: str
    head_dim: int | None
    branches: int | None
    noise: bool | None
    tile: dict[str, int]
    num_warps: int
    shared_bytes: int
    registers: int
    spill_bytes: int
    tensor_core: str | None
    ptx_version: int
    arguments: tuple[Argument, ...]
    ptx: str
    cubin: bytes


def compile_indicator_attention(
    head_dim: int, dtype: str, architecture: str, tile: Tile | None = None, ptx_version: int | None = None
) -> Compiled:
    """The fused attention kernel; `tile` None takes the shipped one.

    `ptx_version` 90 writes PTX 9.0, for a driver that takes no newer one. It takes about a second; the same request
    again in one process costs nothing. Raises ValueError for an unknown head dim, dtype, architecture or PTX version,
    listing the choices; AotError without triton or under TRITON_INTERPRET.
    """
    return _indicator_attention(
        head_dim, dtype, architecture, tile or shipped_tile(head_dim, dtype, architecture), ptx_version
    )


@functools.cache
def _indicator_attention(head_dim: int, dtype: str, architecture: str, tile: Tile, ptx_version: int | None) -> Compiled:
    _choice("head_dim", head_dim, HEAD_DIMS)
    _choice("dtype", dtype, DTYPES)
    check_target(architecture, ptx_version)
    check_compiler()
    return _compile(
        _source("indicator_attention"),
        types=dict.fromkeys(_TENSORS, f"*{dtype}") | {"scale": "*fp32"},
        constants={"HEAD_DIM": head_dim, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        architecture=architecture,
        ptx_version=ptx_version,
        facts={
            "name": f"indicator_attention-{architecture}-{dtype}-d{head_dim}",
            "op": "indicator_attention",
            "dtype": dtype,
            "head_dim": head_dim,
            "branches": None,
            "noise": None,
            "tile": {"block_m": tile.block_m, "block_n": tile.block_n, "num_stages": tile.num_stages},
        },
    )


@functools.cache
def compile_guided_step(branches: int, noise: bool, architecture: str, ptx_version: int | None = None) -> Compiled:
    """The fused sampler step for 1 to 3 `branches`, with or without noise. Errors as `compile_indicator_attention`."""
    _choice("(branches, noise)", (branches, noise), tuple(variants()))
    check_target(architecture, ptx_version)
    check_compiler()
    return _compile(
        _source("guided_step"),
        types={name: f"*{pointee}" for name, pointee in POINTEES.items()},
        constants={"BRANCHES": branches, "NOISE": noise, "BLOCK": GUIDED_STEP_BLOCK},
        num_warps=GUIDED_STEP_WARPS,
        num_stages=1,
        architecture=architecture,
        ptx_version=ptx_version,
        facts={
            "name": f"guided_step-{architecture}-fp32-b{branches}{'-noise' if noise else ''}",
            "op": "guided_step",
            "dtype": "fp32",
            "head_dim": None,
            "branches": branches,
            "noise": noise,
            "tile": {"block": GUIDED_STEP_BLOCK},
        },
    )


def check_target(architecture: str, ptx_version: int | None = None) -> None:
    """Raises ValueError for an architecture that isn't shipped, or a PTX version from before it."""
    _choice("architecture", architecture, ARCHITECTURES)
    least = MINIMUM_PTX[architecture]
    if ptx_version is not None and not least <= ptx_version <= 99:
        raise ValueError(
            f"ptx_version {ptx_version} is not for {architecture}; expected {least} (PTX {least / 10}) to 99"
        )


def check_compiler() -> None:
    """Raises AotError where triton is missing, or where its interpreter has taken the compiler's place."""
    if importlib.util.find_spec("triton") is None:
        raise AotError("compiling a kernel needs the package triton: pip install 'ddm-rt[gpu]'")
    # The interpreter replaces triton's own functions on import, so clearing the variable later is no way out.
    if os.environ.get("TRITON_INTERPRET", "").lower() in {"1", "true", "on", "yes", "y"}:
        raise AotError("TRITON_INTERPRET is set: kernels would be interpreted; compile in a process without it")


def _source(op: str) -> Any:
    """The op's kernel in Triton; by name, as in `dispatch`, so that building plans imports torch only to compile."""
    return import_module(f"ddm_rt.kernels.{op}.fused")._kernel


def _choice(name: str, value: object, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} {value!r} is not shipped; choices: {', '.join(map(str, choices))}")


def _compile(
    kernel: Any,
    types: dict[str, str],
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int,
    architecture: str,
    ptx_version: int | None,
    facts: dict[str, Any],
) -> Compiled:
    """Compile, then check what a launch relies on. `types` holds each pointer's type; what is in neither is an i32."""
    signature = {
        parameter.name: "constexpr" if parameter.is_constexpr else types.get(parameter.name, "i32")
        for parameter in kernel.params
    }
    names = list(signature)
    attributes = {
        (names.index(name),): [["tt.divisibility", ALIGNMENT]] for name in names if signature[name].startswith("*")
    }
    compiled, log = _run_triton(
        kernel, signature, constants, attributes, num_warps, num_stages, architecture, ptx_version
    )
    text, metadata = compiled.asm["ptx"], compiled.metadata
    name = facts["name"]
    # A null scratch pointer is only right for a kernel that has no scratch.
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, scratch, 0):
            raise AotError(f"{name} wants {getattr(metadata, scratch)} bytes of {scratch}; a launch passes null there")
    entry = reading.read_entry(text)
    if entry.threads not in (None, 32 * num_warps):
        raise AotError(f"{name} insists on {entry.threads} threads a block; {num_warps} warps were asked for")
    declared: tuple[tuple[str, Kind], ...] = tuple(
        (argument, "i32" if kind == "i32" else "pointer") for argument, kind in signature.items() if kind != "constexpr"
    )
    spills, registers = _SPILLS.search(log), _REGISTERS.search(log)
    if spills is None or registers is None:
        raise AotError(f"{name}: this triton doesn't show ptxas's account of registers and spills")
    if metadata.shared > SHARED_BYTES[architecture]:
        limit = SHARED_BYTES[architecture]
        raise AotError(f"{name} needs {metadata.shared} bytes of shared memory; {architecture} has {limit}")
    return Compiled(
        **facts,
        entry=entry.name,
        architecture=architecture,
        num_warps=num_warps,
        shared_bytes=metadata.shared,
        registers=int(registers[1]),
        spill_bytes=int(spills[1]) + int(spills[2]),
        tensor_core=reading.tensor_core(text),
        ptx_version=reading.version(text),
        arguments=reading.name_arguments(entry, declared),
        ptx=text,
        cubin=compiled.asm["cubin"],
    )


def _run_triton(
    kernel: Any,
    signature: dict[str, str],
    constants: dict[str, Any],
    attributes: dict[tuple[int], list[list[Any]]],
    num_warps: int,
    num_stages: int,
    architecture: str,
    ptx_version: int | None,
) -> tuple[Any, str]:
    """triton's compiled kernel, and what ptxas said."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.errors import PTXASError

    knobs = triton.knobs
    source = ASTSource(kernel, signature, constants, attributes)
    options = {"num_warps": num_warps, "num_stages": num_stages, "ptx_version": ptx_version, "enable_fp_fusion": True}
    log = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as cache,
        knobs.cache.scope(),
        knobs.compilation.scope(),
        knobs.nvidia.scope(),
        knobs.runtime.scope(),
        contextlib.redirect_stdout(log),
    ):
        # A cached kernel comes without ptxas's account, and line information would name this machine's folders. What
        # the environment asks for must not change a pack.
        knobs.cache.dir = cache
        knobs.compilation.always_compile = True
        knobs.compilation.disable_line_info = True
        knobs.nvidia.dump_ptxas_log = True
        knobs.runtime.override_arch = None
        try:
            compiled = triton.compile(source, target=GPUTarget("cuda", int(architecture[3:]), 32), options=options)
        except PTXASError as error:
            said = re.search(r"(?:fatal|error)\s+:\s*([^\n]*)", str(error))
            raise AotError(f"ptxas refused a kernel for {architecture}: {said[1] if said else error}") from error
    return compiled, log.getvalue()
