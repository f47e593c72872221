"""The sampling loop of images that start and end together."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.sample.loop.batch_probe import concat, take
from ddm_rt.sample.loop.slots import Slots
from ddm_rt.schedule import StepTable


class Cancelled(Exception):
    """`cancel` returned true: sampling stopped between two steps and nothing was returned."""


def sample(
    engine: Engine,
    table: StepTable,
    x: NDArray[np.float32],  # [B, C, H, W], the first state, already times table.init_scale
    cond_branches: Sequence[Cond],  # 1 to 3, from the least conditioned on; B rows each
    scales: NDArray[np.float32],  # [B, branches - 1], guidance scales
    seeds: NDArray[np.uint64],  # [B]
    on_step: Callable[[int], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    buckets: Sequence[int] | None = None,
) -> Array:
    """Samples [B, C, H, W], an array of the engine.

    Denoiser calls have sizes in `buckets` (ascending; None: one call of B·branches rows). `on_step` is told the number
    of steps done; `cancel` is asked before each step. Raises Cancelled.
    """
    batch, branches = len(x), len(cond_branches)
    stacked = concat(engine, cond_branches)  # row r is image r % B in branch r // B
    slots = Slots(engine, lambda wanted: take(engine, stacked, np.array(wanted, np.int64)), buckets)
    slots.admit(table, x, [range(i, batch * branches, batch) for i in range(batch)], scales.tolist(), seeds)
    samples: Array = x
    for i in range(table.num_steps):
        if cancel is not None and cancel():
            raise Cancelled(f"cancelled before step {i + 1} of {table.num_steps}")
        _, samples = slots.tick()
        if on_step is not None:
            on_step(i + 1)
    return samples
