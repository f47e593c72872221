"""Compiles the shipped kernels for a named GPU architecture, on a machine that needs no GPU.

triton, and the kernels that need it, are imported inside the functions: this module imports without them.
"""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import re
import tempfile
from importlib import import_module
from typing import Any, NamedTuple

from ddm_rt.kernels import ptx as reading
from ddm_rt.kernels.guided_step.table import GUIDED_STEP_BLOCK, GUIDED_STEP_WARPS, POINTEES, variants
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES, Tile
from ddm_rt.kernels.indicator_attention.table import tile as shipped_tile
from ddm_rt.kernels.pack import File, Kernel
from ddm_rt.kernels.projected_guidance.table import (
    BRANCHES,
    POINTERS,
    PROJECTED_GUIDANCE_BLOCK,
    PROJECTED_GUIDANCE_WARPS,
)
from ddm_rt.kernels.ptx import Kind

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


class Compiled(NamedTuple):
    """One kernel for one architecture: what a pack's manifest says of it, and its code."""

    kernel: Kernel
    ptx: str
    cubin: bytes


@functools.cache
def compile_indicator_attention(
    head_dim: int, dtype: str, architecture: str, tile: Tile | None = None, ptx_version: int | None = None
) -> Compiled:
    """The fused attention kernel; `tile` None takes the shipped one.

    `ptx_version` 90 writes PTX 9.0, for a driver that takes no newer one. It takes about a second; the same request
    again in one process costs nothing. Raises ValueError for an unknown head dim, dtype, architecture or PTX version,
    listing the choices; AotError without triton or under TRITON_INTERPRET.
    """
    shipped = shipped_tile(head_dim, dtype, architecture)
    tile = tile or shipped
    return _compile(
        "indicator_attention",
        types=dict.fromkeys(_TENSORS, f"*{dtype}") | {"scale": "*fp32"},
        constants={"HEAD_DIM": head_dim, "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n},
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        architecture=architecture,
        ptx_version=ptx_version,
        facts={
            "name": f"indicator_attention-{architecture}-{dtype}-d{head_dim}",
            "dtype": dtype,
            "head_dim": head_dim,
            "tile": {"block_m": tile.block_m, "block_n": tile.block_n, "num_stages": tile.num_stages},
        },
    )


@functools.cache
def compile_guided_step(branches: int, noise: bool, architecture: str, ptx_version: int | None = None) -> Compiled:
    """The fused sampler step for 1 to 3 `branches`, with or without noise. Errors as `compile_indicator_attention`."""
    if (branches, noise) not in variants():
        listed = ", ".join(map(str, variants()))
        raise ValueError(f"(branches, noise) {(branches, noise)} is not shipped; choices: {listed}")
    return _compile(
        "guided_step",
        types={name: f"*{pointee}" for name, pointee in POINTEES.items()},
        constants={"BRANCHES": branches, "NOISE": noise, "BLOCK": GUIDED_STEP_BLOCK},
        num_warps=GUIDED_STEP_WARPS,
        num_stages=1,
        architecture=architecture,
        ptx_version=ptx_version,
        facts={
            "name": f"guided_step-{architecture}-fp32-b{branches}{'-noise' if noise else ''}",
            "dtype": "fp32",
            "branches": branches,
            "noise": noise,
            "tile": {"block": GUIDED_STEP_BLOCK},
        },
    )


@functools.cache
def compile_projected_guidance(branches: int, architecture: str, ptx_version: int | None = None) -> Compiled:
    """The fused projected guidance of 2 or 3 `branches`. Errors as `compile_indicator_attention`."""
    if branches not in BRANCHES:
        raise ValueError(f"branches {branches} is not shipped; choices: {', '.join(map(str, BRANCHES))}")
    return _compile(
        "projected_guidance",
        types=dict.fromkeys(POINTERS, "*fp32"),
        constants={"BRANCHES": branches, "BLOCK": PROJECTED_GUIDANCE_BLOCK},
        num_warps=PROJECTED_GUIDANCE_WARPS,
        num_stages=1,
        architecture=architecture,
        ptx_version=ptx_version,
        facts={
            "name": f"projected_guidance-{architecture}-fp32-b{branches}",
            "dtype": "fp32",
            "branches": branches,
            "tile": {"block": PROJECTED_GUIDANCE_BLOCK},
        },
    )


def check_target(architecture: str, ptx_version: int | None = None) -> None:
    """Raises ValueError for an architecture that isn't shipped, or a PTX version from before it."""
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture!r} is not shipped; choices: {', '.join(ARCHITECTURES)}")
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


def _compile(
    op: str,
    *,
    types: dict[str, str],
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int,
    architecture: str,
    ptx_version: int | None,
    facts: dict[str, Any],
) -> Compiled:
    """Compile, then check what a launch relies on. `types` holds each pointer's type; what is in neither is an i32."""
    check_target(architecture, ptx_version)
    check_compiler()
    kernel = import_module(f"ddm_rt.kernels.{op}.fused")._kernel  # by name, so that torch is imported to compile alone
    signature = {
        parameter.name: "constexpr" if parameter.is_constexpr else types.get(parameter.name, "i32")
        for parameter in kernel.params
    }
    attributes = {
        (place,): [["tt.divisibility", ALIGNMENT]]
        for place, kind in enumerate(signature.values())
        if kind.startswith("*")
    }
    options = {"num_warps": num_warps, "num_stages": num_stages, "ptx_version": ptx_version, "enable_fp_fusion": True}
    compiled, log = _run_triton((kernel, signature, constants, attributes), architecture, options)
    ptx, cubin, metadata = compiled.asm["ptx"], compiled.asm["cubin"], compiled.metadata
    name = facts["name"]
    # A null scratch pointer is only right for a kernel that has no scratch.
    for scratch in ("global_scratch_size", "profile_scratch_size"):
        if getattr(metadata, scratch, 0):
            raise AotError(f"{name} wants {getattr(metadata, scratch)} bytes of {scratch}; a launch passes null there")
    entry = reading.read_entry(ptx)
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
    made = Kernel.model_validate(
        {"op": op, "head_dim": None, "branches": None, "noise": None}
        | facts
        | {
            "entry": entry.name,
            "architecture": architecture,
            "num_warps": num_warps,
            "shared_bytes": metadata.shared,
            "registers": int(registers[1]),
            "spill_bytes": int(spills[1]) + int(spills[2]),
            "tensor_core": reading.tensor_core(ptx),
            "ptx_version": reading.version(ptx),
            "arguments": reading.name_arguments(entry, declared),
            "ptx": File(file=f"{name}.ptx", sha256=hashlib.sha256(ptx.encode()).hexdigest()),
            "cubin": File(file=f"{name}.cubin", sha256=hashlib.sha256(cubin).hexdigest()),
            "alignment": ALIGNMENT,
        }
    )
    return Compiled(made, ptx, cubin)


def _run_triton(source: tuple[Any, ...], architecture: str, options: dict[str, Any]) -> tuple[Any, str]:
    """triton's compiled kernel, and what ptxas said."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.runtime.errors import PTXASError

    knobs = triton.knobs
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
            compiled = triton.compile(
                ASTSource(*source), target=GPUTarget("cuda", int(architecture[3:]), 32), options=options
            )
        except PTXASError as error:
            said = re.search(r"(?:fatal|error)\s+:\s*([^\n]*)", str(error))
            raise AotError(f"ptxas refused a kernel for {architecture}: {said[1] if said else error}") from error
    return compiled, log.getvalue()
