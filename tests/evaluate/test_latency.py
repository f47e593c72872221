"""Rounds of a timing: how many there are where each takes longer than there is time for."""

from typing import Any, cast

from ddm_rt.evaluate.comparison.sides import Side, seconds_of_requests
from ddm_rt.sample.pipeline import Pipeline


class FakePipeline:
    def generate(self, **request: Any) -> None:
        pass


def test_three_rounds_are_timed_however_long_they_take() -> None:
    told: list[int] = []
    pipeline = cast(Pipeline, FakePipeline())
    sides = [(Side("a", "a"), pipeline), (Side("b", "b"), pipeline)]
    taken = seconds_of_requests(sides, 1, 30, limit_s=0.0, progress=told.append)
    assert [len(seconds) for seconds in taken] == [3, 3]
    assert told == [0, 1, 2, 3]
