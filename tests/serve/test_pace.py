"""How long work takes: what one shape has shown says what another takes, in proportion to its numbers."""

import pytest

from ddm_rt.serve.scheduling.queue import Pace

SMALL, LARGE = (1, 2, 2), (1, 4, 4)  # four times the numbers


@pytest.mark.parametrize(("seen", "asked", "ratio"), [(SMALL, LARGE, 4), (LARGE, SMALL, 1 / 4)])
def test_another_shape_takes_time_in_proportion_to_its_numbers(
    seen: tuple[int, ...], asked: tuple[int, ...], ratio: float
) -> None:
    pace = Pace(slots=8)
    pace.saw(seen, images=2, seconds=0.5)
    assert pace.step_s(seen) == 0.25
    assert pace.step_s(asked) == 0.25 * ratio


def test_a_full_server_says_what_a_step_takes() -> None:
    pace = Pace(slots=8)
    pace.saw(SMALL, images=1, seconds=0.5)
    pace.saw(SMALL, images=4, seconds=1.0)
    pace.saw(SMALL, images=2, seconds=0.75)
    assert pace.step_s(SMALL) == 0.25


def test_what_was_seen_before_counts_for_nine_tenths() -> None:
    pace = Pace(slots=8)
    pace.saw(SMALL, images=1, seconds=1.0)
    pace.saw(SMALL, images=1, seconds=2.0)
    assert pace.step_s(SMALL) == pytest.approx(1.1)
