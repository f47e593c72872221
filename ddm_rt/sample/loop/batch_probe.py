"""Batch sizes of denoiser and decoder calls. A backend may round differently at another batch size or position; only
sizes that gave the same bits in a probe are mixed, so that an image's bytes don't depend on its batch.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.noise import Stream, normal

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)

# Latent numbers in one call; keeps the probe and the calls of large models within memory.
_MAX_ELEMENTS = 2**18


def probe(
    engine: Engine,
    cond: Cond,
    cond_rows: int,
    shape: tuple[int, int, int],
    timesteps: NDArray[np.float32],
    most: int | None = None,
) -> tuple[tuple[int, ...], ...]:
    """Groups of batch sizes that give the same bits, each ascending, for latents of `shape` (C, H, W); that of the
    largest size first.

    Denoiser and decoder run on fixed noise at every candidate size: once in order, once at shifted positions among
    other neighbours, and once with the first row at every position. A size whose rows differ between these is dropped
    (size 1 can't). `cond` has `cond_rows` rows, which are repeated; `timesteps` are those of a table. No size exceeds
    `most` and the engine's `max_batch`.

    Raises DdmError where no size is left of those that the engine takes.
    """
    sizes = _candidates(engine, shape, most)
    x = engine.array(normal(np.arange(sizes[-1], dtype=np.uint64), 0, Stream.INITIAL, shape))

    def run(index: NDArray[np.int64]) -> NDArray[np.float32]:
        t = engine.array(timesteps[index * 7 % len(timesteps)])  # neighbouring rows at unlike noise levels
        out = engine.denoiser(engine.take(x, index), t, take(engine, cond, index % cond_rows))
        return engine.decoder(out)

    steady: dict[int, NDArray[np.float32]] = {}  # size -> its rows in order
    for size in sizes:
        in_order = np.arange(size)
        rows = run(in_order)
        others = ((in_order + 1) % max(size // 2, 1), np.zeros_like(in_order))
        if all(np.array_equal(_bits(run(other)), _bits(rows[other])) for other in others):
            steady[size] = rows
    if not steady:
        raise DdmError(f"backend {engine.backend}: an image depends on its neighbours at each batch size of {sizes}")
    groups: list[list[int]] = []  # each from its largest size downwards, which the others are held against
    for size in reversed(steady):
        same = [group for group in groups if np.array_equal(_bits(steady[group[0]][:size]), _bits(steady[size]))]
        if same:
            same[0].append(size)
        else:
            groups.append([size])
    return tuple(tuple(reversed(group)) for group in groups)


def _candidates(engine: Engine, shape: tuple[int, int, int], most: int | None) -> tuple[int, ...]:
    if engine.batch_sizes is not None:
        return engine.batch_sizes
    most = min(engine.max_batch or CANDIDATES[-1], most or CANDIDATES[-1])
    fitting = [size for size in CANDIDATES if size <= most and size * int(np.prod(shape)) <= _MAX_ELEMENTS]
    return tuple(fitting) or (1,)


def split(rows: int, buckets: Sequence[int]) -> list[NDArray[np.int64]]:
    """Row numbers of each call, in order: every call has a size in `buckets` (ascending), the last may be filled up
    by starting again at row 0. A call is filled up rather than split where that wastes at most a quarter of it.
    """
    calls, start = [], 0
    while start < rows:
        left = rows - start
        above = min((size for size in buckets if size >= left), default=None)
        below = max((size for size in buckets if size <= left), default=None)
        if above is not None and (below is None or 4 * left >= 3 * above):
            size = above
        else:
            size = below or buckets[0]
        calls.append(np.arange(start, start + size, dtype=np.int64) % rows)
        start += size
    return calls


def take(engine: Engine, cond: Cond, index: NDArray[np.int64]) -> dict[str, Array]:
    """Rows of every array of `cond`."""
    return {name: engine.take(array, index) for name, array in cond.items()}


def concat(engine: Engine, conds: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Several `cond` joined along the batch axis."""
    return {name: engine.concat([cond[name] for cond in conds]) for name in conds[0]}


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Equal bits, not equal numbers: -0 is not 0, and a NaN is itself."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32)
