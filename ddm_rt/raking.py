"""Raking: weights of cells that give each factor the shares that are wanted of it.

W. E. Deming and F. F. Stephan, "On a least squares adjustment of a sampled frequency table when the expected marginal
totals are known", Annals of Mathematical Statistics 11 (1940) 427-444, in the form known as iterative proportional
fitting: one factor after the other, every cell's weight is multiplied by wanted / present share of its value, until
nothing changes. Of all weights that give the shares, these are the nearest to the first ones in relative entropy
(I. Csiszár, Annals of Probability 3 (1975) 146-158).

A cell to which the shares leave nothing shrinks as 1/n over n cycles, too slowly to wait for. So a cell whose weight
still falls when the cycles are over gets none, and the rest is raked again. What is returned as reached always is.

Plain +, * and / in a fixed order, so that the C library (`csrc/raking.cpp`) gives the same bits.
"""

from collections.abc import Sequence
from typing import NamedTuple

_DONE = 1e-10  # of a share; the cycles stop
_TOLERANCE = 1e-6  # of a share; what is further off after all cycles is not reached
_CYCLES = 1000
_ROUNDS = 3  # the last two without cells that were left with nothing
_NONE = 1e-200  # below it a division may have no finite result
_FALLING = 0.6  # of the weight at half of the cycles; one that falls as 1/n has .5


class Margin(NamedTuple):
    """One factor: of each cell an index into `wanted`, and the share wanted of each value. They sum to 1."""

    value_of: Sequence[int]
    wanted: Sequence[float]


def rake(weights: Sequence[float], margins: Sequence[Margin]) -> tuple[list[float], bool]:
    """Weights [cells] nearest to `weights` that give `margins`, and whether they do: each share within 1e-6, and within
    1e-9 unless they nearly leave a cell with nothing.

    Where they don't, it may be that no weights do: cells are missing, or have no weight. Of `margins` the last then is
    met. `weights` sum to 1 and are not negative; a cell of weight 0 keeps it.
    """
    found, off = list(weights), 0.0
    for left in reversed(range(_ROUNDS)):
        half = found
        for cycle in range(_CYCLES):
            if cycle == _CYCLES // 2:
                half = found
            before, off = found, 0.0
            for value_of, wanted in margins:
                present = shares(value_of, found, len(wanted))
                off = max(off, *(abs(has - want) for has, want in zip(present, wanted, strict=True)))
                ratios = [want / has if has > _NONE else 0.0 for has, want in zip(present, wanted, strict=True)]
                found = [weight * ratios[value] for weight, value in zip(found, value_of, strict=True)]
            if off <= _DONE or found == before:
                return found, off <= _TOLERANCE
        if left:
            found = [weight if weight >= _FALLING * then else 0.0 for weight, then in zip(found, half, strict=True)]
    return found, off <= _TOLERANCE


def shares(value_of: Sequence[int], weights: Sequence[float], num_values: int) -> list[float]:
    """The weight of each value, added up in the order of the cells."""
    found = [0.0] * num_values
    for value, weight in zip(value_of, weights, strict=True):
        found[value] += weight
    return found
