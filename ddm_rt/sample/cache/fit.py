"""Which steps need a call of the denoiser, and the rows that make up for those that don't: found on the walks of a few
images by least squares.

It is a solver fitted to one model, in the family of Shaul et al. 2023 (bespoke solvers, arXiv 2310.19075), but with the
timesteps of the table and linear least squares in place of gradients. Reusing `out - x`, or `out`, over the steps in
between, as caches of whole outputs do, are special cases of its rows.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step_reference
from ddm_rt.progress import OnStep
from ddm_rt.sample.cache.reuse import LEAST, MOST, Reuse, picked, refuse_noise
from ddm_rt.sample.pipeline import Pipeline, Prepared

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


class Fitter:
    """The whole walk of the images of a request, and the caches that are found on it.

    `asked` is a request without a cache. Raises DdmError for a sampler that adds noise, and a walk that isn't finite.
    """

    def __init__(self, pipeline: Pipeline, asked: Prepared, on_step: OnStep | None = None) -> None:
        refuse_noise(asked.table)
        self._pipeline, self._asked, self._table = pipeline, asked, asked.table
        self.walk = self._whole(on_step)
        if not all(np.isfinite(array).all() for arrays in self.walk for array in arrays):
            raise DdmError(f"{pipeline.bundle.path}: its walk has values that aren't finite; a cache needs them")
        self._gram = _gram(self.walk)

    def fit(self, calls: int, on_step: OnStep | None = None) -> Fitted:
        """The cache with so many calls for each image.

        Raises DdmError for fewer than two calls, as many as there are steps, and a walk with them that runs away.
        """
        whole, count = self.walk, self._table.num_steps
        if not LEAST <= calls < count:
            raise DdmError(f"calls is {calls}; expected {LEAST} to {count - 1}, fewer than there are steps")
        steps = choose(self._gram, count, calls)
        x, before, rows = whole.x[0], np.zeros_like(whole.x[0]), []
        for number, (step, following) in enumerate(zip(steps, (*steps[1:], count), strict=True)):
            out, x0 = self.call(step, x)
            columns = [x, x0, before, out]
            row = _row(columns, whole.x[following], first=number == 0)
            rows.append(tuple(row.tolist()))
            made = sum(np.float32(factor) * column for factor, column in zip(row, columns, strict=True))
            x, before = np.asarray(made, np.float32), x0
            if on_step is not None:
                on_step(number + 1, calls)
        if not (np.isfinite(x).all() and np.abs(rows).max() <= MOST):
            raise DdmError(f"calls is {calls}: the walk with so few calls runs away; try more calls")
        error = float(np.sqrt(np.mean((x - whole.x[-1]).astype(np.float64) ** 2)))
        return Fitted(Reuse(steps=tuple(steps), rows=tuple(rows)), error, float(whole.x[-1].std()))

    def _whole(self, on_step: OnStep | None) -> _Walk:
        rows, count = self._table.rows(), self._table.num_steps
        x = self._pipeline.first_states(self._asked, range(len(self._asked.jobs)))
        walk, before = _Walk([x], [], []), np.zeros_like(x)
        unguided = np.zeros((len(x), 0), np.float32)  # the output is guided already
        for step in range(count):
            out, x0 = self.call(step, x)
            x, _ = guided_step_reference([out], unguided, np.repeat(rows[step : step + 1], len(x), axis=0), x, before)
            before = x0
            for held, array in zip(walk, (x, x0, out), strict=True):
                held.append(array)
            if on_step is not None:
                on_step(step + 1, count)
        return walk

    def call(self, step: int, x: States) -> tuple[States, States]:
        """The guided output and x0 of one step for all images."""
        jobs, out = self._asked.jobs, np.empty_like(x)
        slots = self._pipeline.slots(self._asked.shape, self._asked.manifest)
        alone = picked(self._table, (step,), ((0.0, 0.0, 0.0, 1.0),))  # its sample is the output
        at_once = max(slots.buckets[-1] // max(len(job.branches.conditions) for job in jobs), 1)
        for start in range(0, len(x), at_once):
            members = slice(start, start + at_once)
            slots.admit(alone, x[members], jobs[members])
            _, made = slots.tick()
            out[members] = self._pipeline.engine.host(made)
        row = self._table.rows()[step]
        return out, (row[0] * x + row[1] * out).clip(row[7], row[8])


def _gram(walk: _Walk) -> Floats:
    """Products [3 S + 1, 3 S + 1] of all states, then all x0, then all outputs, each as one vector."""
    vectors = np.stack([array.reshape(-1) for array in (*walk.x, *walk.x0, *walk.out)])
    return np.stack([np.einsum("ij,j->i", vectors, row, dtype=np.float64) for row in vectors])


def choose(gram: Floats, count: int, calls: int) -> list[int]:
    """The steps that call the denoiser, the first and the last among them: those whose rows leave the least error, all
    together, on the states of the whole walk of `count` steps. `gram` is as `_gram` has it.
    """
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
