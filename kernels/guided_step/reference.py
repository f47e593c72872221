"""Guidance and step-table update, written over array methods: the same lines run on numpy arrays and torch tensors.

On numpy this is the oracle of every other implementation.
"""

from collections.abc import Sequence
from typing import Any

Array = Any  # numpy.ndarray or torch.Tensor

MAX_BRANCHES = 3


def guided_step_reference(
    outputs: Sequence[Array],  # 1 to 3 branches, each [B, C, H, W]
    scales: Array,  # [B, branches - 1]
    rows: Array,  # [B, 9]
    x: Array,  # [B, C, H, W]
    x0_prev: Array,  # [B, C, H, W]
    z: Array | None,  # [B, C, H, W]
) -> tuple[Array, Array]:
    """One sampler step of B images, each with a step-table row of its own. Everything is float32.

        out = o_0 + Σ_i scales[:, i]·(o_{i+1} - o_i)
        x0  = clip(a·x + b·out, clip_min, clip_max)
        x'  = c·x + d·x0 + e·x0_prev + g·out + f·z

    `outputs` go from the least conditioned branch to the most; with two this is classifier-free guidance (Ho and
    Salimans 2022, arXiv 2207.12598, eq. 6, in the form null + g·(conditioned - null)). `rows` holds a, b, c, d, e,
    g, f, clip_min, clip_max. `z` may be None where every f is 0. Sums run from left to right, each operation is
    rounded to float32, and rows never meet: an image's result doesn't depend on the batch.

    Returns (x', x0), each [B, C, H, W]. Raises ValueError for a number of branches or scales that doesn't fit, and
    for a missing z.
    """
    if not 1 <= len(outputs) <= MAX_BRANCHES:
        raise ValueError(f"outputs has {len(outputs)} branches; expected 1 to {MAX_BRANCHES}")
    if tuple(scales.shape) != (x.shape[0], len(outputs) - 1):
        raise ValueError(f"scales has shape {tuple(scales.shape)}; expected {(x.shape[0], len(outputs) - 1)}")
    if tuple(rows.shape) != (x.shape[0], 9):
        raise ValueError(f"rows has shape {tuple(rows.shape)}; expected {(x.shape[0], 9)}")
    a, b, c, d, e, g, f, clip_min, clip_max = (rows[:, k].reshape(-1, 1, 1, 1) for k in range(9))
    if z is None and bool((f != 0).any()):
        raise ValueError("z is None; a row has f != 0 and needs noise")

    out = outputs[0]
    for i in range(len(outputs) - 1):
        out = out + scales[:, i].reshape(-1, 1, 1, 1) * (outputs[i + 1] - outputs[i])
    x0 = (a * x + b * out).clip(clip_min, clip_max)
    x_next = c * x + d * x0 + e * x0_prev + g * out
    if z is not None:
        x_next = x_next + f * z
    return x_next, x0
