"""Tile sizes of the fused kernel, per head dim, dtype and GPU architecture. Imports neither torch nor triton.

The tiles were chosen by compiling, not by timing: nothing here was measured to be fast. Among tiles of 64 or 128
queries that compile without a spill, within the architecture's shared memory and to tensor-core instructions, the
shipped one lets a multiprocessor hold the most warps, by its registers and shared memory on sm_80 (mma.sync) or sm_90
(wgmma); among equals the one of 128 queries, which reads the keys half as often. Steps have 32 keys, or 16 where 32
spill: 77 text tokens then cost 96 columns and three rescalings of the sums, against 128 and two with 64 keys. Many
queries (a 64x64 latent) were had in mind. float16 and bfloat16 take the same tiles.

"Tactics" are what an autotuner may time on a device: the shipped tile, then others without spills.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Tile(NamedTuple):
    """How one program of the kernel is cut."""

    block_m: int  # queries of a program
    block_n: int  # text keys of one step of its loop
    num_warps: int
    num_stages: int


HEAD_DIMS = (16, 32, 40, 64, 80, 96, 128, 160)
DTYPES = ("fp16", "bf16")
MAX_TEXT = 512  # text tokens
MAX_INDICATOR = 16  # indicator tokens: one step of the narrowest tensor-core tile
MAX_BATCH_HEADS = 65535  # the second axis of CUDA's grid

ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120")

_SMALL = Tile(64, 32, 4, 2)
_LARGE = Tile(128, 32, 8, 2)

# Warps hold accumulators and operands in registers (mma.sync): a wide head leaves room for few keys.
_REGISTERS: dict[int, tuple[Tile, ...]] = {
    16: (_LARGE, _SMALL, Tile(128, 16, 8, 2)),
    32: (_SMALL, _LARGE, Tile(128, 16, 8, 2)),
    40: (_LARGE, _SMALL, Tile(128, 16, 8, 2), Tile(64, 64, 4, 2)),
    64: (_SMALL, _LARGE, Tile(128, 16, 8, 2), Tile(64, 64, 4, 2)),
    80: (_SMALL, _LARGE, Tile(64, 16, 4, 2)),
    96: (_LARGE, Tile(64, 16, 4, 2), Tile(128, 16, 8, 2)),
    128: (_LARGE, Tile(128, 16, 8, 2)),
    160: (Tile(128, 16, 8, 2), Tile(64, 16, 4, 2)),
}

# The same instructions, but compiled otherwise: the tiles above spill there.
_SM_120 = _REGISTERS | {
    128: (Tile(128, 16, 8, 2), Tile(128, 32, 8, 3)),
    160: (Tile(128, 16, 8, 1), Tile(64, 16, 4, 1)),
}

# Operands come from shared or tensor memory (wgmma, tcgen05).
_MEMORY: dict[int, tuple[Tile, ...]] = {
    16: (_SMALL, _LARGE, Tile(64, 64, 4, 2)),
    32: (_LARGE, _SMALL, Tile(64, 64, 4, 2)),
    40: (_SMALL, _LARGE, Tile(64, 64, 4, 2)),
    64: (_SMALL, _LARGE, Tile(128, 64, 8, 2)),
    80: (_LARGE, _SMALL, Tile(64, 64, 4, 2)),
    96: (_LARGE, _SMALL, Tile(128, 16, 8, 2)),
    128: (_LARGE, _SMALL, Tile(128, 64, 8, 2)),
    160: (_LARGE, _SMALL),
}

_TACTICS = {
    "sm_80": _REGISTERS,
    "sm_86": _REGISTERS,
    "sm_89": _REGISTERS,
    "sm_90": _MEMORY,
    "sm_100": _MEMORY,
    "sm_120": _SM_120,
}


def tactics(head_dim: int, dtype: str, architecture: str) -> tuple[Tile, ...]:
    """The shipped tile, then the alternatives that an autotuner may time.

    Raises ValueError for a head dim, dtype or architecture that is not in the table, listing the choices.
    """
    for name, value, choices in (
        ("head_dim", head_dim, HEAD_DIMS),
        ("dtype", dtype, DTYPES),
        ("architecture", architecture, ARCHITECTURES),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r} has no tile; choices: {', '.join(map(str, choices))}")
    return _TACTICS[architecture][head_dim]


def tile(head_dim: int, dtype: str, architecture: str) -> Tile:
    """The tile that ships for this head dim, dtype and architecture. Raises ValueError as `tactics` does."""
    return tactics(head_dim, dtype, architecture)[0]


def nearest(capability: int) -> str:
    """The newest architecture of the table that isn't newer than a compute capability (as 10·major + minor).

    Raises ValueError where there is none.
    """
    older = [name for name in ARCHITECTURES if int(name.removeprefix("sm_")) <= capability]
    if not older:
        raise ValueError(f"sm_{capability} is older than every architecture of the table: {', '.join(ARCHITECTURES)}")
    return older[-1]


def unsupported(dtypes: Sequence[str], head_dim: int, n_text: int, n_indicator: int, batch_heads: int) -> str | None:
    """Why the fused kernel doesn't take such an input, or None when it does: it then equals the reference.

    `dtypes` are those of q, k, v, k_ind and v_ind, as "float16" or "bfloat16"; `batch_heads` is B·H.
    """
    if len(set(dtypes)) != 1:
        return f"dtypes {', '.join(sorted(set(dtypes)))} are mixed"
    if dtypes[0] not in ("float16", "bfloat16"):
        return f"dtype {dtypes[0]} is not float16 or bfloat16"
    for name, value, limit in (
        ("text tokens", n_text, MAX_TEXT),
        ("indicator tokens", n_indicator, MAX_INDICATOR),
        ("batch times heads", batch_heads, MAX_BATCH_HEADS),
    ):
        if not 1 <= value <= limit:
            return f"{name} is {value}, not 1 to {limit}"
    if head_dim not in HEAD_DIMS:
        return f"head dim {head_dim} is not one of {', '.join(map(str, HEAD_DIMS))}"
    return None
