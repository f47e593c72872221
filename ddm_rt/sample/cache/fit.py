"""Which steps need a call of the denoiser, and the rows that make up for those that don't: found on the walks of a few
images by least squares.

It is a solver fitted to one model, in the family of Shaul et al. 2023 (bespoke solvers, arXiv 2310.19075), but with the
timesteps of the table and linear least squares in place of gradients. Reusing `out - x`, or `out`, over the steps in
between, as caches of whole outputs do, are special cases of its rows.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step_reference
from ddm_rt.progress import OnStep
from ddm_rt.sample.cache.reuse import LEAST, MOST, Reuse, picked, refuse_noise
from ddm_rt.sample.pipeline import Pipeline, Prepared
from ddm_rt.schedule import StepTable

_SMALLEST = 1e-6  # singular value over the largest one: below, two columns are taken for one
_DECIMALS = 9  # of a stored coefficient, so that machines agree on it

States = NDArray[np.float32]  # [B, C, H, W]
Floats = NDArray[np.float64]


class Fitted(NamedTuple):
    """A cache, and how far its walk ends from the whole one: root mean square over latents, and over all images."""

    reuse: Reuse
    error: float
    spread: float  # standard deviation of the whole walk's samples


class _Walk(NamedTuple):
    """What the steps of a table gave: the states before them and after the last one, x0 and the guided output."""

    x: list[States]  # [S + 1]
    x0: list[States]  # [S]
    out: list[States]  # [S]


def fit(pipeline: Pipeline, asked: Prepared, calls: int, on_step: OnStep | None = None) -> Fitted:
    """The cache with so many calls for each image. `asked` is a request without one, whose images are the samples.

    Raises DdmError for fewer than two calls, as many as there are steps, and a sampler that adds noise.
    """
    table = asked.table
    if not LEAST <= calls < table.num_steps:
        raise DdmError(f"calls is {calls}; expected {LEAST} to {table.num_steps - 1}, fewer than there are steps")
    refuse_noise(table)
    total = table.num_steps + calls

    def call(step: int, x: States, done: int) -> tuple[States, States]:
        found = _call(pipeline, asked, table, step, x)
        if on_step is not None:
            on_step(done + 1, total)
        return found

    whole = _walk(pipeline, asked, table, call)
    if not all(np.isfinite(array).all() for array in (*whole.x, *whole.x0, *whole.out)):
        raise DdmError(f"{pipeline.bundle.path}: its walk has values that aren't finite; no cache can be found on it")
    steps = choose(whole, calls)
    x, before, rows = whole.x[0], np.zeros_like(whole.x[0]), []
    for number, (step, following) in enumerate(zip(steps, (*steps[1:], table.num_steps), strict=True)):
        out, x0 = call(step, x, table.num_steps + number)
        columns = [x, x0, before, out]
        row = _row(columns, whole.x[following], first=number == 0)
        rows.append(tuple(row.tolist()))
        made = sum(np.float32(factor) * column for factor, column in zip(row, columns, strict=True))
        x, before = np.asarray(made, np.float32), x0
    if not (np.isfinite(x).all() and np.abs(rows).max() <= MOST):
        raise DdmError(f"calls is {calls}: the walk with so few calls runs away; try more calls")
    error = float(np.sqrt(np.mean((x - whole.x[-1]).astype(np.float64) ** 2)))
    return Fitted(Reuse(steps=tuple(steps), rows=tuple(rows)), error, float(whole.x[-1].std()))


def choose(walk: _Walk, calls: int) -> list[int]:
    """The steps that call the denoiser, the first and the last among them: those whose rows leave the least error, all
    together, on the states of the whole walk.
    """
    count = len(walk.x0)
    vectors = np.stack([array.reshape(-1) for array in (*walk.x, *walk.x0, *walk.out)])  # [3 S + 1, N]
    gram = np.empty((len(vectors),) * 2)
    for i, row in enumerate(vectors):
        gram[i] = np.einsum("ij,j->i", vectors, row, dtype=np.float64)
    x0, out = count + 1, 2 * count + 1  # where these begin

    @functools.cache
    def left(before: int | None, step: int, following: int) -> float:
        """Of X_following, over what `step` and the call before it gave: the squared error that no row avoids."""
        basis = [step, x0 + step, out + step, *([] if before is None else [x0 + before])]
        own, with_target = gram[np.ix_(basis, basis)], gram[basis, following]
        solution = np.linalg.lstsq(own, with_target, rcond=_SMALLEST**2)[0]
        return max(float(gram[following, following] - with_target @ solution), 0.0)

    # best[before, step]: the least error of the walks of some length that end in these two calls
    best: dict[tuple[int | None, int], tuple[float, list[int]]] = {(None, 0): (0.0, [0])}
    for number in range(1, calls):
        longer: dict[tuple[int | None, int], tuple[float, list[int]]] = {}
        last = number == calls - 1
        for (before, step), (error, steps) in best.items():
            for following in [count - 1] if last else range(step + 1, count - (calls - number) + 1):
                found = error + left(before, step, following)
                if found < longer.get((step, following), (np.inf, []))[0]:
                    longer[step, following] = found, [*steps, following]
        best = longer
    return min(best.values())[1]


def _row(columns: Sequence[States], target: States, *, first: bool) -> Floats:
    """c, d, e, g by least squares over all numbers; there is no x0 before the first step."""
    used = [0, 1, 3] if first else [0, 1, 2, 3]
    matrix = np.stack([columns[k].reshape(-1) for k in used]).astype(np.float64)
    solution = np.linalg.lstsq(matrix @ matrix.T, matrix @ target.reshape(-1).astype(np.float64), rcond=_SMALLEST**2)[0]
    row = np.zeros(4)
    row[used] = np.round(solution, _DECIMALS)
    return row


def _walk(
    pipeline: Pipeline, asked: Prepared, table: StepTable, call: Callable[[int, States, int], tuple[States, States]]
) -> _Walk:
    rows = table.rows()
    x = pipeline.first_states(asked, range(len(asked.jobs)))
    walk, before = _Walk([x], [], []), np.zeros_like(x)
    for step in range(table.num_steps):
        out, x0 = call(step, x, step)
        every = np.repeat(rows[step : step + 1], len(x), axis=0)
        zeros = np.zeros((len(x), 0), np.float32)
        x, _ = guided_step_reference([out], zeros, every, x, before)
        before = x0
        for held, array in zip(walk, (x, x0, out), strict=True):
            held.append(array)
    return walk


def _call(pipeline: Pipeline, asked: Prepared, table: StepTable, step: int, x: States) -> tuple[States, States]:
    """The guided output and x0 of one step for all images."""
    out = np.empty_like(x)
    slots = pipeline.slots(asked.shape, asked.manifest)
    alone = _output_of(table, step)
    most = max(len(job.branches.conditions) for job in asked.jobs)
    for start in range(0, len(x), at_once := max(slots.buckets[-1] // most, 1)):
        members = slice(start, start + at_once)
        slots.admit(alone, x[members], asked.jobs[members])
        _, made = slots.tick()
        out[members] = pipeline.engine.host(made)
    row = table.rows()[step]
    return out, (row[0] * x + row[1] * out).clip(row[7], row[8])


def _output_of(table: StepTable, step: int) -> StepTable:
    """A table of this step alone, whose sample is the output."""
    return picked(table, (step,), ((0.0, 0.0, 0.0, 1.0),))
