"""Which steps of a table call the denoiser, and how the others are made up for by what the calls before them gave."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.schedule import StepTable

LEAST = 2  # calls: those of the first and of the last step
MOST = 1e6  # of a coefficient

Coefficient = Annotated[float, Field(ge=-MOST, le=MOST)]
Row = tuple[Coefficient, Coefficient, Coefficient, Coefficient]


def _ascending(steps: tuple[int, ...]) -> tuple[int, ...]:
    if len(steps) < LEAST or steps[0] != 0 or any(b <= a for a, b in pairwise(steps)):
        raise ValueError("expected the numbers of two or more steps in ascending order, from 0 on")
    return steps


class Reuse(Frozen):
    """Steps that call the denoiser, and the rows c, d, e, g of their updates, each of which leads to the next call.

        x' = c·x + d·x0 + e·x0_prev + g·out

    is then the state before the next of `steps`; of the last one it is the sample. What the calls in between would have
    given is a sum of what is there, so the whole way to the next call is one row of a step table.
    """

    steps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_ascending)]
    rows: tuple[Row, ...]  # of each of `steps`

    def of(self, table: StepTable) -> StepTable:
        """The rows of `table` that are left. Raises DdmError for a table that doesn't fit, or adds noise."""
        last = table.num_steps - 1
        if len(self.rows) != len(self.steps) or self.steps[-1] != last:
            raise DdmError(
                f"cache: has {len(self.rows)} rows for the steps {self.steps}; expected one for each, up to step {last}"
            )
        refuse_noise(table)
        return picked(table, self.steps, self.rows)


_OF_STEPS = ("t", "a", "b", "f", "clip_min", "clip_max", "guided", "kept")


def picked(table: StepTable, steps: Sequence[int], rows: Sequence[Sequence[float]]) -> StepTable:
    """These steps of a table, with c, d, e, g of `rows`."""
    c, d, e, g = np.array(rows, np.float64).T
    every: dict[str, Any] = {name: getattr(table, name)[list(steps)] for name in _OF_STEPS}
    return replace(table, num_steps=len(steps), **every, c=c, d=d, e=e, g=g)


def refuse_noise(table: StepTable) -> None:
    """Raises DdmError for a table whose steps add noise, to x or to a prompt's tokens: what a call gave says nothing of
    the noise of later steps.
    """
    if table.f.any():
        raise DdmError(f"cache is given, but the sampler {table.sampler.value} adds noise in its steps here")
    if (table.kept < 1).any():
        raise DdmError("cache is given, but cads adds noise to the prompt's tokens in its steps")
