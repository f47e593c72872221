"""Raking: shares that are reached, those that can't be, and the same numbers everywhere."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SOLVED_SHARE_ABS

from ddm_rt.raking import Margin, rake, shares


def gives(weights: list[float], margins: list[Margin]) -> bool:
    return all(
        abs(has - want) <= SOLVED_SHARE_ABS
        for value_of, wanted in margins
        for has, want in zip(shares(value_of, weights, len(wanted)), wanted, strict=True)
    )


def test_a_product_is_reached_in_one_cycle() -> None:
    margins = [Margin((0, 0, 1, 1), (0.3, 0.7)), Margin((0, 1, 0, 1), (0.9, 0.1))]
    found, reached = rake([0.25] * 4, margins)
    assert reached
    assert found == pytest.approx([0.27, 0.03, 0.63, 0.07])


def test_weights_keep_how_their_cells_go_together() -> None:
    """The odds ratio, which no margin decides."""
    found, reached = rake([0.4, 0.1, 0.1, 0.4], [Margin((0, 0, 1, 1), (0.2, 0.8)), Margin((0, 1, 0, 1), (0.5, 0.5))])
    assert reached
    assert found[0] * found[3] / (found[1] * found[2]) == pytest.approx(16)


def test_a_cell_that_is_left_with_nothing() -> None:
    """Two by two, one cell missing: even shares leave nothing to one of the three. It shrinks as 1/n."""
    margins = [Margin((0, 1, 1), (0.5, 0.5)), Margin((0, 0, 1), (0.5, 0.5))]
    assert rake([1 / 3] * 3, margins) == ([0.5, 0.0, 0.5], True)


def test_out_of_reach_the_last_shares_are_met() -> None:
    """The missing cell is the only one of its value, or not enough."""
    margins = [Margin((0, 1, 1), (0.6, 0.4)), Margin((0, 0, 1), (0.5, 0.5))]
    found, reached = rake([1 / 3] * 3, margins)
    assert not reached
    assert gives(found, margins[1:])
    assert not gives(found, margins[:1])
    assert rake([0.5, 0.5], [Margin((0, 1), (0.0, 1.0)), Margin((0, 1), (1.0, 0.0))]) == ([0.0, 0.0], False)


def test_tiny_shares_are_no_trouble() -> None:
    for tiny in (5e-324, 1e-300, 1e-200, 1e-17):
        found, _ = rake([0.25] * 4, [Margin((0, 0, 1, 1), (tiny, 1.0)), Margin((0, 1, 0, 1), (1.0, tiny))])
        assert all(math.isfinite(weight) for weight in found)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_what_some_weights_give_is_reached(data: st.DataObject) -> None:
    """Margins of any weights with the same cells."""
    sizes = data.draw(st.lists(st.integers(2, 3), min_size=2, max_size=3))
    number = math.prod(sizes)
    size = st.floats(0.05, 1)
    cells = data.draw(st.lists(st.integers(0, number - 1), min_size=2, max_size=number, unique=True))
    first, other = (data.draw(st.lists(size, min_size=len(cells), max_size=len(cells))) for _ in range(2))
    margins, step = [], 1
    for values in sizes:
        value_of = [cell // step % values for cell in cells]
        margins.append(Margin(value_of, shares(value_of, [weight / math.fsum(other) for weight in other], values)))
        step *= values
    found, reached = rake([weight / math.fsum(first) for weight in first], margins)
    assert reached
    assert gives(found, margins)
