"""Images in their slots: shapes take turns, tick by tick."""

from contextlib import ExitStack

import pytest
from fake_engine import FakeEngine, fake_bundle

from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.queue import Work
from ddm_rt.serve.scheduling.running import RunningImages
from ddm_rt.serve.scheduling.ticket import Ticket

STEPS = 3


@pytest.fixture
def pipeline() -> Pipeline:
    return Pipeline(fake_bundle(), FakeEngine())


def work_of(pipeline: Pipeline, size: int, n: int = 2) -> Work:
    with ExitStack() as draws:
        prepared = draws.enter_context(pipeline.prepare(Request(n=n, num_steps=STEPS, height=size, width=size)))
        states = pipeline.first_states(prepared, range(n))
    return Work(n, STEPS, prepared.shape, "", 0, Ticket(n, n * STEPS, 60.0), prepared, states)


def test_ticks_of_two_sizes_alternate(pipeline: Pipeline) -> None:
    running = RunningImages(pipeline, clock=lambda: 0.0)
    small, large = (work_of(pipeline, size) for size in (8, 12))
    assert running.take_in([(small, 0), (large, 0), (small, 1)]) == []
    shapes = [running.tick().shape for _ in range(2 * STEPS)]
    assert shapes == [small.shape, large.shape] * STEPS
    assert len(running) == 0
