"""Indicator-conditioned attention in one pass over the queries, in Triton.

FlashAttention's online softmax (Dao 2023, arXiv 2307.08691, algorithm 1) over the text keys, then the indicator's
few keys, whose own softmax needs one step, while the tile of queries is still on the chip.
"""

import logging
from functools import cache
from typing import TYPE_CHECKING

import triton
import triton.language as tl
from triton.runtime.interpreter import InterpretedFunction

from ddm_rt.kernels.indicator_attention import table

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

INDICATOR = tl.constexpr(table.MAX_INDICATOR)


@triton.jit
def _pointers(base, n_heads, ROWS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Of ROWS x WIDTH elements of one head, from its column FIRST; a row of the tensor holds all heads."""
    rows = tl.arange(0, ROWS)[:, None]
    columns = FIRST + tl.arange(0, WIDTH)[None, :]
    return base + rows * (n_heads * HEAD_DIM) + columns


@triton.jit
def _load(base, n_rows, n_heads, ROWS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Those elements, 0 beyond `n_rows` rows and beyond the head."""
    mask = tl.arange(0, ROWS)[:, None] < n_rows
    if FIRST + WIDTH > HEAD_DIM:
        mask = mask & (FIRST + tl.arange(0, WIDTH)[None, :] < HEAD_DIM)
    return tl.load(_pointers(base, n_heads, ROWS, FIRST, WIDTH, HEAD_DIM), mask=mask, other=0.0)


@triton.jit
def _store(
    base, x, n_rows, n_heads, ROWS: tl.constexpr, FIRST: tl.constexpr, WIDTH: tl.constexpr, HEAD_DIM: tl.constexpr
):
    mask = tl.arange(0, ROWS)[:, None] < n_rows
    if FIRST + WIDTH > HEAD_DIM:
        mask = mask & (FIRST + tl.arange(0, WIDTH)[None, :] < HEAD_DIM)
    tl.store(_pointers(base, n_heads, ROWS, FIRST, WIDTH, HEAD_DIM), x.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _logits(
    q_low, q_high, k, n_keys, n_heads, KEYS: tl.constexpr, LOW: tl.constexpr, HIGH: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """q kᵀ·log2(e)/√D, with -inf where a key is beyond `n_keys`. [BLOCK_M, KEYS]"""
    # float32 inputs stay float32: no TF32.
    logits = tl.dot(q_low, tl.trans(_load(k, n_keys, n_heads, KEYS, 0, LOW, HEAD_DIM)), input_precision="ieee")
    if HIGH > 0:
        k_high = tl.trans(_load(k, n_keys, n_heads, KEYS, LOW, HIGH, HEAD_DIM))
        logits = tl.dot(q_high, k_high, logits, input_precision="ieee")
    logits *= HEAD_DIM**-0.5 * 1.4426950408889634
    return tl.where(tl.arange(0, KEYS)[None, :] < n_keys, logits, float("-inf"))


# Sizes are plain numbers to the compiler: one binary serves all, and an image's bits don't depend on them.
@triton.jit(do_not_specialize=["n_queries", "n_text", "n_indicator", "n_heads"])
def _kernel(
    q,  # [B, N, H, D], as all tensors contiguous
    k,  # [B, T, H, D]
    v,
    k_ind,  # [B, M, H, D], M up to 16
    v_ind,
    scale,  # [B] float32
    n_queries,
    n_text,
    n_indicator,
    n_heads,
    out,  # [B, N, H, D]
    HEAD_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program: BLOCK_M queries of one head of one sample. Grid (cdiv(N, BLOCK_M), B*H, 1).

    A block's sides are powers of two, so the head dim is kept in two blocks: LOW, the largest power in it, and HIGH,
    which holds the rest (40 is 32 + 16, half of it masked, rather than 64) and is 0 for none.
    """
    LOW: tl.constexpr = 128 if HEAD_DIM >= 128 else 64 if HEAD_DIM >= 64 else 32 if HEAD_DIM >= 32 else 16
    HIGH: tl.constexpr = 0 if HEAD_DIM == LOW else 16 if HEAD_DIM - LOW <= 16 else 32

    first = tl.program_id(0) * BLOCK_M
    batch = (tl.program_id(1) // n_heads).to(tl.int64)  # offsets into a whole tensor may pass 32 bits
    head = tl.program_id(1) % n_heads * HEAD_DIM
    stride = n_heads * HEAD_DIM  # from one row to the next
    q += (batch * n_queries + first) * stride + head
    out += (batch * n_queries + first) * stride + head
    k += batch * n_text * stride + head
    v += batch * n_text * stride + head
    k_ind += batch * n_indicator * stride + head
    v_ind += batch * n_indicator * stride + head
    n_rows = n_queries - first

    q_low = _load(q, n_rows, n_heads, BLOCK_M, 0, LOW, HEAD_DIM)
    q_high = q_low
    if HIGH > 0:
        q_high = _load(q, n_rows, n_heads, BLOCK_M, LOW, HIGH, HEAD_DIM)

    highest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    low = tl.zeros([BLOCK_M, LOW], tl.float32)
    if HIGH > 0:
        high = tl.zeros([BLOCK_M, HIGH], tl.float32)
    for start in range(0, n_text, BLOCK_N):
        n_keys = n_text - start
        logits = _logits(q_low, q_high, k + start * stride, n_keys, n_heads, BLOCK_N, LOW, HIGH, HEAD_DIM)
        risen = tl.maximum(highest, tl.max(logits, 1))
        weights = tl.exp2(logits - risen[:, None])
        shrink = tl.exp2(highest - risen)
        total = total * shrink + tl.sum(weights, 1)
        weights = weights.to(v.dtype.element_ty)
        v_low = _load(v + start * stride, n_keys, n_heads, BLOCK_N, 0, LOW, HEAD_DIM)
        low = tl.dot(weights, v_low, low * shrink[:, None], input_precision="ieee")
        if HIGH > 0:
            v_high = _load(v + start * stride, n_keys, n_heads, BLOCK_N, LOW, HIGH, HEAD_DIM)
            high = tl.dot(weights, v_high, high * shrink[:, None], input_precision="ieee")
        highest = risen

    logits = _logits(q_low, q_high, k_ind, n_indicator, n_heads, INDICATOR, LOW, HIGH, HEAD_DIM)
    weights = tl.exp2(logits - tl.max(logits, 1)[:, None])
    share = tl.load(scale + batch) / tl.sum(weights, 1)  # s over the softmax's sum
    # s stays in float32: rounded into half-precision weights it would cost the result a bit.
    weights = weights.to(v.dtype.element_ty)
    v_low = _load(v_ind, n_indicator, n_heads, INDICATOR, 0, LOW, HEAD_DIM)
    low = low / total[:, None] + share[:, None] * tl.dot(weights, v_low, input_precision="ieee")
    _store(out, low, n_rows, n_heads, BLOCK_M, 0, LOW, HEAD_DIM)
    if HIGH > 0:
        v_high = _load(v_ind, n_indicator, n_heads, INDICATOR, LOW, HIGH, HEAD_DIM)
        high = high / total[:, None] + share[:, None] * tl.dot(weights, v_high, input_precision="ieee")
        _store(out, high, n_rows, n_heads, BLOCK_M, LOW, HIGH, HEAD_DIM)


INTERPRETED = isinstance(_kernel, InterpretedFunction)


@cache
def architecture(device_index: int) -> str:
    """The table's architecture for a CUDA device: its own, or the nearest older one, which is logged once.

    Raises ValueError for a device that is older than the whole table.
    """
    import torch

    major, minor = torch.cuda.get_device_capability(device_index)
    found: str = table.nearest(major * 10 + minor)
    if found != f"sm_{major}{minor}":
        log.info("indicator attention: sm_%d%d has no tiles of its own and takes those of %s", major, minor, found)
    return found


def refused(q: "Tensor", k: "Tensor", v: "Tensor", k_ind: "Tensor", v_ind: "Tensor") -> str | None:
    """Why the kernel doesn't take these tensors, whose shapes fit together, or None when it does."""
    if not (q.is_cuda or INTERPRETED):
        return f"the tensors are on the device {q.device.type}, not cuda"
    dtypes = [str(x.dtype).removeprefix("torch.") for x in (q, k, v, k_ind, v_ind)]
    if INTERPRETED:
        if "bfloat16" in dtypes:
            return "Triton's interpreter multiplies bfloat16 matrices wrongly; use float32 or float16 there"
        dtypes = ["float16" if name == "float32" else name for name in dtypes] if len(set(dtypes)) == 1 else dtypes
    reason: str | None = table.unsupported(dtypes, q.shape[3], k.shape[1], k_ind.shape[1], q.shape[0] * q.shape[2])
    if reason is None and q.is_cuda:
        try:
            architecture(q.get_device())
        except ValueError as error:
            reason = str(error)
    return reason


def indicator_attention_fused(
    q: "Tensor",
    k: "Tensor",
    v: "Tensor",
    k_ind: "Tensor",
    v_ind: "Tensor",
    scale: "Tensor",
    *,
    tile: table.Tile | None = None,
) -> "Tensor":
    """softmax(q kᵀ/√D) v + s · softmax(q k_indᵀ/√D) v_ind, as the reference, computed in float32 on the way.

    q [B,N,H,D]; k, v [B,T,H,D]; k_ind, v_ind [B,M,H,D]; scale [B]. Returns [B,N,H,D], contiguous, in q's dtype.
    `tile` is the table's for the device, unless given; it never depends on the batch.
    Raises ValueError for tensors that `refused` names or that are not on one device. In Triton's interpreter, which is
    for tests, tensors may lie on the CPU and be float32, and bfloat16 is refused.
    """
    import torch

    reason = refused(q, k, v, k_ind, v_ind)
    if reason is not None:
        raise ValueError(f"fused indicator attention: {reason}")
    if any(x.device != q.device for x in (k, v, k_ind, v_ind, scale)):
        raise ValueError(f"fused indicator attention: not all tensors are on q's device, {q.device}")
    batch, queries, heads, dim = q.shape
    if tile is None:
        dtype = "bf16" if q.dtype == torch.bfloat16 else "fp16"
        tile = table.tile(dim, dtype, architecture(q.get_device()) if q.is_cuda else table.ARCHITECTURES[0])

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    tensors = [x.contiguous() for x in (q, k, v, k_ind, v_ind)]
    sizes = (queries, k.shape[1], k_ind.shape[1], heads)
    grid = (triton.cdiv(queries, tile.block_m), batch * heads, 1)
    with torch.cuda.device(q.get_device()):  # Triton launches on the current device; -1 (CPU) changes nothing
        _kernel[grid](
            *tensors,
            scale.to(torch.float32).contiguous(),
            *sizes,
            out,
            HEAD_DIM=dim,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
            enable_fp_fusion=True,
        )
    return out
