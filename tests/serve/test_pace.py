"""How long work takes: what one shape has shown says what another takes, in proportion to its numbers."""

import pytest

from ddm_rt.serve.pace import Pace

SMALL, LARGE = (1, 2, 2), (1, 4, 4)  # four times the numbers


@pytest.mark.parametrize(("seen", "asked", "ratio"), [(SMALL, LARGE, 4), (LARGE, SMALL, 1 / 4)])
def test_another_shape_takes_time_in_proportion_to_its_numbers(
    seen: tuple[int, ...], asked: tuple[int, ...], ratio: float
) -> None:
    pace = Pace(slots=8)
    pace.saw(seen, images=2, seconds=0.5)
    assert pace.step_s(seen) == 0.25
    assert pace.step_s(asked) == 0.25 * ratio
