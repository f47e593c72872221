"""`ddm_rt::IndicatorAttention` for TensorRT: a quick deployable plugin whose kernel lies in the plan.

TensorRT asks for the output's shape, for the tiles to time (tactics), and for each tile's kernel: PTX of the same
Triton source that torch runs, compiled ahead of time. The plan then needs neither Python nor triton. The ONNX node
carries `plugin_namespace="ddm_rt"` and `aot=1`.

TensorRT launches with the inputs' addresses, the 32-bit integers, the output's address, and nothing else, so the
kernel's parameter list must be exactly that.
"""

import importlib.util
import logging
import re
from dataclasses import dataclass
from typing import Any

from ddm_rt.engine.tensorrt import cuda
from ddm_rt.errors import DdmError
from ddm_rt.kernels.compiled import AotError, Compiled, check_target, compile_indicator_attention
from ddm_rt.kernels.indicator_attention.table import Tile, tactics, unsupported
from ddm_rt.kernels.ptx import read_entry

NAMESPACE, NAME = "ddm_rt", "IndicatorAttention"
PLUGIN_ID = f"{NAMESPACE}::{NAME}"

INPUTS = ("q", "k", "v", "k_ind", "v_ind", "scale")
RANKS = (4, 4, 4, 4, 4, 1)

# What TensorRT passes: six inputs, four integers, one output.
PARAMETERS = ("pointer",) * 6 + ("i32",) * 4 + ("pointer",)

# TensorRT's name of a type -> ours. float32 is not offered: it has no tiles, and a graph in it takes plain operators.
_DTYPES = {"HALF": "fp16", "BF16": "bf16"}
_LONG_NAMES = {"HALF": "float16", "BF16": "bfloat16", "FLOAT": "float32"}

# A block gets this much dynamic shared memory without a function attribute; KernelLaunchParams has none, and whether
# TensorRT sets it is not documented. A tile that needs more is offered without its pipeline, or not at all.
MAX_SHARED_BYTES = 48 * 1024


@dataclass(frozen=True)
class Target:
    """What the kernels are compiled for. `ptx_version` is the newest that the driver reads (90 is 9.0), None any."""

    architecture: str
    ptx_version: int | None = None


_registered: Target | None = None

logger = logging.getLogger(__name__)


def unavailable() -> str | None:
    """Why the plugin can't be registered here, or None."""
    if importlib.util.find_spec("tensorrt") is None:
        return "the plugin needs the package tensorrt: pip install 'ddm-rt[tensorrt]'"
    try:
        import tensorrt.plugin  # noqa: F401
    except (ImportError, OSError) as error:
        return f"tensorrt.plugin doesn't import: {' '.join(str(error).split())}"
    if importlib.util.find_spec("triton") is None:
        return "compiling the plugin's kernel needs the package triton: pip install 'ddm-rt[gpu]'"
    return None


def register(architecture: str, ptx_version: int | None = None) -> None:
    """Register the plugin with TensorRT for builds on a device of `architecture` (`sm_90`).

    TensorRT's registry belongs to the process: asking for the same target again does nothing. `ptx_version` is the
    newest PTX that may be written (90 is 9.0); None takes what this machine's driver reads, or without a driver what
    the compiler writes.

    Raises DdmError for an architecture or PTX version without kernels, a second target in one process, or where
    tensorrt or triton are missing.
    """
    global _registered
    target = Target(architecture, driver_ptx() if ptx_version is None else ptx_version)
    if _registered == target:
        return
    if _registered is not None:
        raise DdmError(f"{PLUGIN_ID} is registered for {_registered}; build for {target} in a process of its own")
    if (reason := unavailable()) is not None:
        raise DdmError(reason)
    try:
        check_target(architecture, target.ptx_version)
    except ValueError as error:
        raise DdmError(f"{PLUGIN_ID}: {error}") from error
    _define(target)
    _registered = target


def newest_ptx(driver_version: str) -> int:
    """The newest PTX that a driver of that CUDA version ("13.0") reads, as ten times itself (90).

    From the PTX ISA's release history. Raises DdmError for what is no CUDA version from 11 on.
    """
    found = re.fullmatch(r"(\d{2})\.(\d{1,2})", driver_version)
    if found is None or int(found[1]) < 11:
        raise DdmError(f"CUDA version {driver_version!r} of the driver: expected 11.0 or later")
    major, minor = int(found[1]), int(found[2])
    if (major, minor) >= (12, 6) and major < 13:
        minor -= 1  # 12.6 brought no new PTX
    return min(10 * (major - 4) + minor, 99)  # no compiler writes PTX 10 yet


def driver_ptx() -> int | None:
    """The newest PTX that this machine's driver reads, None without a driver."""
    if (reason := cuda.unavailable()) is not None:
        logger.info("%s: PTX as new as the compiler writes: %s", PLUGIN_ID, reason)
        return None
    return newest_ptx(cuda.device_info().driver_version)


def offered(head_dim: int, dtype: str, target: Target) -> dict[int, Compiled]:
    """Tactic number -> kernel. Numbers are places in the tile table from 1 on (TensorRT keeps 0 for "no tactic").

    Raises DdmError for a head dim or dtype without tiles, or where no tile fits into a plugin's shared memory.
    """
    kernels = {}
    try:
        for number, tile in enumerate(tactics(head_dim, dtype, target.architecture), start=1):
            if (made := _fitting(head_dim, dtype, tile, target)) is not None:
                # A name of its own: a plan holds several of these kernels, and a profiler shows no more than the name.
                entry = f"ddm_rt_indicator_attention_{dtype}_d{head_dim}_tile{number}"
                ptx = re.sub(rf"\b{re.escape(made.kernel.entry)}\b", entry, without_scratch(made.ptx))
                kernels[number] = made._replace(kernel=made.kernel.model_copy(update={"entry": entry}), ptx=ptx)
    except (AotError, ValueError) as error:
        raise DdmError(f"{PLUGIN_ID}: {error}") from error
    if not kernels:
        raise DdmError(
            f"{PLUGIN_ID}: no tile of head dim {head_dim} in {dtype} on {target.architecture} fits into "
            f"{MAX_SHARED_BYTES} bytes of shared memory"
        )
    return kernels


def _fitting(head_dim: int, dtype: str, tile: Tile, target: Target) -> Compiled | None:
    """The tile, without its pipeline where that takes too much shared memory; None where it doesn't fit at all."""
    for cut in (tile, tile._replace(num_stages=1)):
        made = compile_indicator_attention(head_dim, dtype, target.architecture, cut)
        if target.ptx_version is not None and made.kernel.ptx_version > target.ptx_version:
            made = compile_indicator_attention(head_dim, dtype, target.architecture, cut, target.ptx_version)
        if made.kernel.shared_bytes <= MAX_SHARED_BYTES:
            return made
    return None


def without_scratch(ptx: str) -> str:
    """`ptx` whose entry takes what TensorRT passes and no more.

    Triton appends pointers to scratch memory. TensorRT isn't known to pass them; a kernel that never reads them doesn't
    need them declared. Raises ValueError where one is read, or where what remains is not `PARAMETERS`.
    """
    entry = read_entry(ptx)
    surplus = len(entry.parameters) - len(PARAMETERS)
    if surplus > 0:
        start = ptx.index("(", ptx.index(".entry")) + 1
        end = ptx.index(")", start)
        declared = ptx[start:end].split(",")
        names = [part.split()[-1] for part in declared[-surplus:]]
        for name in names:
            if re.search(rf"\b{re.escape(name)}\b", ptx[end:]):
                raise ValueError(f"the kernel reads its scratch parameter {name}, which TensorRT doesn't pass")
        ptx = ptx[:start] + ",".join(declared[:-surplus]) + "\n" + ptx[end:]
        entry = read_entry(ptx)
    kinds = tuple(kind for kind, _ in entry.parameters)
    if kinds != PARAMETERS:
        raise ValueError(f"{entry.name} takes {', '.join(kinds)}; TensorRT passes {', '.join(PARAMETERS)}")
    return ptx


def _define(target: Target) -> None:
    """The plugin's functions, whose parameter names and annotations TensorRT reads and checks."""
    import tensorrt.plugin as trtp
    from tensorrt.plugin import TensorDesc as T

    def tiles(q: T) -> dict[int, Compiled]:
        return offered(q.shape[3], _DTYPES[q.dtype.name], target)

    def describe(q: T, k: T, v: T, k_ind: T, v_ind: T, scale: T) -> T:
        for name, rank, tensor in zip(INPUTS, RANKS, (q, k, v, k_ind, v_ind, scale), strict=True):
            if tensor.ndim != rank:
                raise DdmError(f"{PLUGIN_ID}: {name} has {tensor.ndim} axes, expected {rank}")
        return q.like()

    def autotune(q: T, k: T, v: T, k_ind: T, v_ind: T, scale: T, outputs: tuple[T]) -> list[trtp.AutoTuneCombination]:
        _check((q, k, v, k_ind, v_ind))
        types = [q.dtype.name] * 5 + ["FLOAT", q.dtype.name]  # the scale is float32 beside half-precision tensors
        return [trtp.AutoTuneCombination(", ".join(types), "LINEAR", list(tiles(q)))]

    def kernel(
        q: T, k: T, v: T, k_ind: T, v_ind: T, scale: T, outputs: tuple[T], tactic: int
    ) -> tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs]:
        kernels = tiles(q)
        if tactic not in kernels:
            raise DdmError(f"{PLUGIN_ID}: tactic {tactic} was not offered; expected one of {list(kernels)}")
        facts, ptx, _ = kernels[tactic]
        batch, n_queries, n_heads, _ = q.shape_expr
        launch = trtp.KernelLaunchParams()
        launch.grid_x = trtp.cdiv(n_queries, facts.tile["block_m"])
        launch.grid_y = batch * n_heads
        launch.block_x = 32 * facts.num_warps
        launch.shared_mem = facts.shared_bytes
        sizes = (n_queries, k.shape_expr[1], k_ind.shape_expr[1], n_heads)
        integers = trtp.SymIntExprs(len(sizes))
        for i, size in enumerate(sizes):
            integers[i] = trtp.SymInt32(size)
        return facts.entry, ptx, launch, integers

    trtp.register(PLUGIN_ID)(describe)
    trtp.autotune(PLUGIN_ID)(autotune)
    trtp.aot_impl(PLUGIN_ID)(kernel)


def _check(tensors: tuple[Any, ...]) -> None:
    """q, k, v, k_ind and v_ind at their largest against what the kernel takes: one clear error, not wrong images."""

    def largest(tensor: Any, axis: int) -> int:
        size: int = tensor.shape[axis]
        return size if size >= 0 else int(tensor.shape.max[axis])

    q, k, _, k_ind, _ = tensors
    if q.shape[3] < 0:
        raise DdmError(f"{PLUGIN_ID}: the head dim of q is not known when the plan is built; export it as a number")
    reason = unsupported(
        [_LONG_NAMES.get(tensor.dtype.name, tensor.dtype.name) for tensor in tensors],
        head_dim=q.shape[3],
        n_text=largest(k, 1),
        n_indicator=largest(k_ind, 1),
        batch_heads=largest(q, 0) * largest(q, 2),
    )
    if reason is not None:
        raise DdmError(f"{PLUGIN_ID}: {reason}; the bundle needs a plan with plain operators")
