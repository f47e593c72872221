"""Rounds of a timing: how many there are where each takes longer than there is time for."""

from typing import Any, cast

from ddm_rt.evaluate import latency
from ddm_rt.evaluate.comparison.sides import Side
from ddm_rt.sample.pipeline import Pipeline


class FakePipeline:
    def generate(self, **request: Any) -> None:
        pass


def test_three_rounds_are_timed_however_long_they_take() -> None:
    told: list[int] = []
    pipelines = [cast(Pipeline, FakePipeline())] * 2
    sides = [Side("a", "a"), Side("b", "b")]
    taken = latency._interleaved(sides, pipelines, 1, 30, 0.0, {}, told.append)
    assert [len(seconds) for seconds in taken] == [3, 3]
    assert told == [0, 1, 2, 3]
