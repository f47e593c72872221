"""Guidance and step-table update, written over array methods: the same lines run on numpy arrays and torch tensors.

On numpy this is the oracle of every other implementation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ddm_rt.kernels.philox import STEP_STREAM, normal, normal_like

Array = Any  # numpy.ndarray or torch.Tensor

MAX_BRANCHES = 3


def guided_step_reference(
    outputs: Sequence[Array],  # 1 to 3 branches, each [B, C, H, W]
    scales: Array,  # [B, branches - 1]
    rows: Array,  # [B, 9]
    x: Array,  # [B, C, H, W]
    x0_prev: Array,  # [B, C, H, W]
    seeds: Array | None = None,  # [B], uint64 in numpy, int64 bit patterns in torch
    counters: Array | None = None,  # [B], integers: the number of each image's row in its step table
    threads: int = 1,
) -> tuple[Array, Array]:
    """One sampler step of B images, each with a step-table row of its own. Everything but the noise's key is float32.

        out = o_0 + Σ_i scales[:, i]·(o_{i+1} - o_i)
        x0  = clip(a·x + b·out, clip_min, clip_max)
        x'  = c·x + d·x0 + e·x0_prev + g·out + f·z

    `outputs` go from the least conditioned branch to the most; with two this is classifier-free guidance (Ho and
    Salimans 2022, arXiv 2207.12598, eq. 6, in the form null + g·(conditioned - null)). `rows` holds a, b, c, d, e,
    g, f, clip_min, clip_max. z is `ddm_rt.kernels.philox.normal(seeds, counters, STEP_STREAM, [C, H, W])`; seeds and
    counters may be None where every f is 0. Sums run from left to right, each operation is rounded to float32, and rows
    never meet: an image's result doesn't depend on the batch.

    Returns (x', x0), each [B, C, H, W]. Raises ValueError for shapes that don't fit, and for missing seeds or counters;
    on a device a row that needs them becomes NaN instead. `threads` is passed to `normal`.
    """
    check_arguments(outputs, scales, rows, x, x0_prev, seeds, counters)
    a, b, c, d, e, g, f, clip_min, clip_max = (rows[:, k].reshape(-1, 1, 1, 1) for k in range(9))
    if seeds is None and _on_host(x) and bool((f != 0).any()):  # on a device, looking would wait for it
        raise ValueError("seeds and counters are None; a row has f != 0 and needs noise")

    out = outputs[0]
    for i in range(len(outputs) - 1):
        out = out + scales[:, i].reshape(-1, 1, 1, 1) * (outputs[i + 1] - outputs[i])
    x0 = (a * x + b * out).clip(clip_min, clip_max)
    x_next = c * x + d * x0 + e * x0_prev + g * out
    if seeds is not None:
        x_next = x_next + f * _noise(seeds, counters, x, threads)
    elif not _on_host(x):
        x_next = x_next.where(f == 0, float("nan"))
    return x_next, x0


def _on_host(x: Array) -> bool:
    return isinstance(x, np.ndarray) or x.device.type == "cpu"


def check_arguments(
    outputs: Sequence[Array],
    scales: Array,
    rows: Array,
    x: Array,
    x0_prev: Array,
    seeds: Array | None,
    counters: Array | None,
) -> None:
    """The checks of every implementation. Raises ValueError naming the argument, its shape and the expected one."""
    batch = x.shape[0]
    if not 1 <= len(outputs) <= MAX_BRANCHES:
        raise ValueError(f"outputs has {len(outputs)} branches; expected 1 to {MAX_BRANCHES}")
    if (seeds is None) != (counters is None):
        raise ValueError("seeds and counters go together; one of them is None")
    expected = {"scales": (batch, len(outputs) - 1), "rows": (batch, 9), "x0_prev": tuple(x.shape)}
    given = {"scales": scales, "rows": rows, "x0_prev": x0_prev}
    for i, out in enumerate(outputs):
        expected[f"outputs[{i}]"], given[f"outputs[{i}]"] = tuple(x.shape), out
    if seeds is not None:
        expected |= {"seeds": (batch,), "counters": (batch,)}
        given |= {"seeds": seeds, "counters": counters}
    for name, shape in expected.items():
        if tuple(given[name].shape) != shape:
            raise ValueError(f"{name} has shape {tuple(given[name].shape)}; expected {shape}")


def _noise(seeds: Array, counters: Array, x: Array, threads: int) -> Array:
    """z like x, made where x is."""
    if isinstance(x, np.ndarray):
        return normal(seeds, counters, STEP_STREAM, x.shape[1:], threads)
    return normal_like(x, seeds, counters, STEP_STREAM)
