"""The sampling loop: rows of a step table, one denoiser call per step for all branches of all images."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.sample.buckets import concat, split, take
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
    calls = split(batch * branches, buckets or (batch * branches,))  # row r is image r % B in branch r // B
    stacked = concat(engine, cond_branches)
    conds = [take(engine, stacked, index) for index in calls]
    parts = [np.arange(batch, dtype=np.int64) + k * batch for k in range(branches)]
    scales, rows, timesteps = engine.array(scales), table.rows(), table.timesteps
    state, keys = engine.array(x), engine.array(seeds)
    x0 = state  # e is 0 in the first row, so any finite x0_prev does
    for i in range(table.num_steps):
        if cancel is not None and cancel():
            raise Cancelled(f"cancelled before step {i + 1} of {table.num_steps}")
        outputs = engine.concat(
            [
                engine.denoiser(
                    engine.take(state, index % batch), engine.array(np.full(len(index), timesteps[i])), cond
                )
                for index, cond in zip(calls, conds, strict=True)
            ]
        )
        noise = (keys, engine.array(np.full(batch, i, np.int64))) if table.f[i] else (None, None)
        row = engine.array(np.repeat(rows[i : i + 1], batch, axis=0))
        state, x0 = engine.guided_step([engine.take(outputs, part) for part in parts], scales, row, state, x0, *noise)
        if on_step is not None:
            on_step(i + 1)
    return state
