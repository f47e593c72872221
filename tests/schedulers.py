"""Schedulers over a fake engine, and waiting for what their threads do."""

from typing import Any

from fake_engine import FakeEngine, fake_bundle
from gated_engine import GatedEngine
from patience import PATIENCE_S

from ddm_rt.sample.balance.ledger import Counts, Stream
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.settings import ServeSettings

STREAM = Stream("ab" * 32, "today", "uniform")  # of a request with the scope "today"
WAIT_S = PATIENCE_S


def scheduler_of(engine: FakeEngine, **settings: Any) -> Scheduler:
    pipeline = Pipeline(fake_bundle(), engine)
    if isinstance(engine, GatedEngine):
        return Scheduler(pipeline, ServeSettings(**settings), clock=lambda: engine.now)
    return Scheduler(pipeline, ServeSettings(**settings))


def stopped_at(engine: GatedEngine, call: int, **settings: Any) -> Scheduler:
    """Its loop stops before that call of the denoiser."""
    scheduler = scheduler_of(engine, **settings)
    assert scheduler.pipeline.buckets
    engine.stop_at = call
    engine.sizes.clear()
    return scheduler


def counts(scheduler: Scheduler) -> Counts:
    """Where `STREAM` stands."""
    return scheduler.pipeline.ledger.counts(STREAM)
