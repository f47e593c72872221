"""The front of replicas, over some of this process: what is lost is sent again, what is refused is told."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_bundle
from gated_engine import GatedEngine
from http_server import SlowEngine, fake_pipeline
from patience import PATIENCE_S, settled
from ray.exceptions import ActorDiedError

from ddm_rt.errors import DdmError, LedgerError
from ddm_rt.sample.balance.ledger import Stream
from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.manifest import read_manifest
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.cluster.front import Front
from ddm_rt.serve.cluster.replica import Accepted, Message, portable
from ddm_rt.serve.http.sse import follow
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.stats import Stats
from ddm_rt.serve.scheduling.ticket import Event, Failed, Finished, ImageReady, Progress, State, Ticket
from ddm_rt.serve.settings import ServeSettings

Script = Callable[[int, AsyncIterator[Message]], AsyncIterator[Message]]


class Messages:
    """What a handle gives: messages to iterate over, and a way to stop them."""

    def __init__(self, messages: AsyncIterator[Message]) -> None:
        self._messages = messages
        self.cancelled = threading.Event()

    def __aiter__(self) -> "Messages":
        return self

    async def __anext__(self) -> Message:
        if self.cancelled.is_set():
            raise asyncio.CancelledError
        return await anext(self._messages)

    def cancel(self) -> None:
        self.cancelled.set()


class Handle:
    """A deployment's handle over schedulers here. `script` may change what the request number k of all hears."""

    def __init__(self, scheduler: Scheduler, script: Script) -> None:
        self._scheduler, self._script = scheduler, script
        self.sent: list[dict[str, Any]] = []
        self.given: list[Messages] = []
        self.render = self

    @property
    def tickets(self) -> list[Ticket]:
        return list(self._scheduler._alive)

    def options(self, stream: bool) -> "Handle":
        assert stream
        return self

    def remote(self, manifest: dict[str, Any], priority: int, deadline_s: float, previews: int) -> Messages:
        self.sent.append(manifest)
        made = self._messages(manifest, priority=priority, deadline_s=deadline_s, previews=previews)
        self.given.append(Messages(self._script(len(self.sent), made)))
        return self.given[-1]

    def broadcast(self, method: str) -> Any:
        class Answers:
            def results(answers, timeout_s: float) -> list[tuple[str, Stats]]:
                return [("one", self._scheduler.stats()), ("two", self._scheduler.stats())]

        return Answers()

    async def _messages(self, manifest: dict[str, Any], **how: Any) -> AsyncIterator[Message]:
        ticket = self._scheduler.replay(read_manifest(manifest), **how)
        yield Accepted()
        async for event in follow(ticket, idle_s=5, grace_s=1):
            if event is not None:
                yield event


async def as_it_is(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for message in messages:
        yield message


async def first_dies_after_an_image(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
    async for message in messages:
        yield message
        if number == 1 and isinstance(message, ImageReady):
            raise ActorDiedError


@contextmanager
def front_of(
    script: Script = as_it_is, settings: ServeSettings | None = None, engine: FakeEngine | None = None
) -> Iterator[tuple[Front, Handle]]:
    settings = settings or ServeSettings()
    with Scheduler(fake_pipeline(engine), settings) as scheduler:
        handle = Handle(scheduler, script)
        front = Front(Pipeline(fake_bundle(), FakeEngine()), handle, settings, 2, lambda: 2)
        front.start()
        try:
            yield front, handle
        finally:
            front.close()
            assert not front.alive


def counts(front: Front, scope: str = "a") -> Any:
    return front.pipeline.ledger.counts(Stream(front.pipeline.bundle.bundle_id, scope, "uniform"))


def test_images_are_those_of_one_pipeline() -> None:
    with front_of() as (front, _):
        assert front.ready
        done = front.submit(Request(n=5, seed=3, num_steps=4)).result(PATIENCE_S)
    expected = fake_pipeline().generate(n=5, seed=3, num_steps=4)
    assert np.array_equal(done.images, expected.images)
    assert done.manifest == expected.manifest


def test_previews_come_from_replicas_too() -> None:
    engine, told = GatedEngine(), list[Event]()
    with front_of(engine=engine) as (front, handle):
        engine.stop_at = len(engine.sizes)
        ticket = front.submit(Request(n=2, seed=3, num_steps=8), previews=2)
        ticket.subscribe(told.append)
        # Until the replica listens to its scheduler.
        assert settled(lambda: any(there.wants_progress for there in handle.tickets))
        engine.go.set()
        ticket.result(PATIENCE_S)
    told = [event for event in told if not isinstance(event, Progress)]
    assert [(type(event).__name__, getattr(event, "index", None)) for event in told] == [
        *[("Preview", 0), ("Preview", 1)] * 2,
        *[("ImageReady", 0), ("ImageReady", 1)],
        ("Finished", None),
    ]


def test_only_what_is_missing_is_sent_again_and_no_image_is_told_twice() -> None:
    with front_of(first_dies_after_an_image) as (front, handle):
        told: list[Any] = []
        ticket = front.submit(Request(n=5, seed=3, num_steps=4, scope="a"))
        ticket.subscribe(told.append)
        done = ticket.result(PATIENCE_S)
        assert [len(manifest["images"]) for manifest in handle.sent] == [5, 4]
        assert counts(front).done.total() == 5
        assert counts(front).leased.total() == counts(front).pooled.total() == 0
    indices = sorted(event.index for event in told if isinstance(event, ImageReady))
    assert indices == [0, 1, 2, 3, 4]
    expected = fake_pipeline().generate(n=5, seed=3, num_steps=4, codes=done.codes)
    assert np.array_equal(done.images, expected.images)


def test_progress_after_a_lost_replica_goes_on_from_there_to_the_total() -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        image = np.zeros((8, 8, 3), np.uint8)
        yield Accepted()
        if number == 1:
            yield Progress(8, 12)  # the first image's steps, and those of the second up to there are lost
            yield ImageReady(0, image)
            raise ActorDiedError
        for index in (0, 1):
            yield Progress(4 * (index + 1), 8)
            yield ImageReady(index, image)
        yield Finished({})

    with front_of(script) as (front, _):
        told: list[Any] = []
        ticket = front.submit(Request(n=3, num_steps=4))
        ticket.subscribe(told.append)
        ticket.result(20)
    assert [event for event in told if isinstance(event, Progress)][-1] == Progress(12, 12)


@pytest.mark.parametrize("how", ["dies", "stops", "breaks off", "cancels"])
def test_ways_to_lose_a_replica(how: str) -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        if number == 1:
            yield Accepted()
            if how == "dies":
                raise ActorDiedError
            if how == "stops":
                yield Failed(Draining("the server has stopped"))
            if how == "cancels":
                raise asyncio.CancelledError
            return
        async for message in messages:
            yield message

    with front_of(script) as (front, handle):
        assert len(front.submit(Request(n=2, num_steps=4)).result(PATIENCE_S).images) == 2
        assert len(handle.sent) == 2


def test_a_request_that_kills_replicas_is_given_up() -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        yield Accepted()
        raise ActorDiedError

    with front_of(script) as (front, handle):
        ticket = front.submit(Request(n=2, num_steps=4, scope="a"))
        with pytest.raises(Exception, match=r"died|dead"):
            ticket.result(PATIENCE_S)
        assert len(handle.sent) == 4
        assert ticket.state is State.FAILED
        assert counts(front).pooled.total() == 2
        assert front.stats().failed == 1


@pytest.mark.parametrize(
    "error", [QueueFull("full", 2.0), DeadlineExceeded("late"), DdmError("n is 0"), Draining("no")]
)
def test_what_a_replica_refuses_is_refused_and_nothing_is_drawn(error: Exception) -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        yield Failed(portable(error))

    with front_of(script) as (front, handle):
        with pytest.raises(type(error), match=str(error)):
            front.submit(Request(n=2, num_steps=4, scope="a"))
        assert len(handle.sent) == {QueueFull: 2, Draining: 4}.get(type(error), 1)
        assert counts(front).pooled.total() == counts(front).issued.total() == 2
        assert front.stats().requests == 0
        assert sum(front.stats().rejected.values()) == 1


def test_another_replica_may_have_room() -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        if number == 1:
            yield Failed(QueueFull("full", 2.0))
            return
        async for message in messages:
            yield message

    with front_of(script) as (front, _):
        assert len(front.submit(Request(num_steps=4)).result(PATIENCE_S).images) == 1


def test_a_request_that_was_taken_in_is_not_refused_when_its_replica_is_lost() -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        if number == 1:
            yield Accepted()
            raise ActorDiedError
        if number == 2:
            yield Failed(QueueFull("full", 0.05))
            return
        async for message in messages:
            yield message

    with front_of(script) as (front, handle):
        assert len(front.submit(Request(num_steps=4)).result(PATIENCE_S).images) == 1
        assert len(handle.sent) == 3


def test_what_the_front_itself_refuses() -> None:
    settings = ServeSettings(slots=1, queue=2, per_key=1, max_steps=50)
    with front_of(settings=settings, engine=SlowEngine(0.02)) as (front, handle):
        for asked, field in (({"n": 3}, "n"), ({"num_steps": 51}, "num_steps"), ({"target": "x"}, "target")):
            with pytest.raises(DdmError, match=field):
                front.submit(Request(**asked))
        with pytest.raises(DdmError, match="deadline_s"):
            front.submit(Request(), deadline_s=0)
        assert not handle.sent
        ticket = front.submit(Request(n=1, num_steps=50), key="alice")
        with pytest.raises(TooMany):
            front.submit(Request(), key="alice")
        assert front.stats().rejected == {"key": 1}
        ticket.cancel()
        front.drain(PATIENCE_S)
        with pytest.raises(Draining):
            front.submit(Request())
        assert not front.ready


def test_as_many_images_as_all_replicas_have_room_for_may_be_under_way_and_as_many_requests_as_a_key_has() -> None:
    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        yield Accepted()
        await asyncio.sleep(3600)  # until it is cancelled

    with front_of(script, ServeSettings(slots=1, queue=2, per_key=2)) as (front, _):
        tickets = [
            front.submit(Request(n=2), key="alice"),
            front.submit(Request(n=2), key="alice"),
            front.submit(Request(n=2)),
        ]
        with pytest.raises(QueueFull, match="6 images are under way; at most 6 may be"):
            front.submit(Request())
        for ticket in tickets:
            ticket.cancel()
        assert settled(lambda: front.stats().requests == 0)
        for _ in range(2):
            front.submit(Request(n=2), key="alice")
        with pytest.raises(TooMany, match="2 requests of this key"):
            front.submit(Request(n=2), key="alice")


def test_what_is_lost_after_its_deadline_is_not_sent_again() -> None:
    lose = threading.Event()

    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        yield Accepted()
        await asyncio.to_thread(lose.wait, 20)
        raise ActorDiedError

    with front_of(script) as (front, handle):
        ticket = front.submit(Request(num_steps=4))
        ticket.deadline = time.monotonic() - 1
        lose.set()
        with pytest.raises(DeadlineExceeded):
            ticket.result(20)
        assert len(handle.sent) == 1


def test_who_cancels_gets_the_slots_and_the_codes_back() -> None:
    with front_of(engine=SlowEngine(0.02)) as (front, handle):
        ticket = front.submit(Request(n=2, num_steps=100, scope="a"))
        assert ticket.cancel()
        with pytest.raises(Cancelled):
            ticket.result(PATIENCE_S)
        assert handle.given[0].cancelled.wait(PATIENCE_S)
        assert counts(front).pooled.total() == 2
        assert (ticket.state, front.stats().cancelled) == (State.CANCELLED, 1)


def test_where_there_is_no_replica_a_request_waits_up_to_its_deadline() -> None:
    taken_in = []

    async def script(number: int, messages: AsyncIterator[Message]) -> AsyncIterator[Message]:
        await asyncio.sleep(PATIENCE_S)
        taken_in.append(number)
        yield Accepted()

    with front_of(script) as (front, _), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ddm_rt.serve.cluster.front._GRACE_S", 0.0)
        with pytest.raises(DeadlineExceeded):
            front.submit(Request(num_steps=4), deadline_s=0.2)
    assert not taken_in


def test_closing_ends_what_is_under_way() -> None:
    with front_of(engine=SlowEngine(0.02)) as (front, _):
        ticket = front.submit(Request(n=2, num_steps=100, scope="a"))
        front.close()
        with pytest.raises(Draining):
            ticket.result(PATIENCE_S)
        assert counts(front).pooled.total() == 2


def test_a_ledger_that_fails_at_the_end_fails_the_request() -> None:
    with front_of() as (front, _), pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            raise LedgerError("the ledger's actor has ended")

        patch.setattr(front.pipeline.ledger, "_commit", refuse)
        with pytest.raises(LedgerError):
            front.submit(Request(num_steps=4, scope="a")).result(PATIENCE_S)


def test_counts_are_summed() -> None:
    with front_of() as (front, _):
        front.submit(Request(n=3, num_steps=4, scope="a")).result(PATIENCE_S)
        stats = front.stats()
    assert (stats.slots, stats.steps, stats.images, stats.finished) == (32, 24, 3, 1)
    assert sum(stats.assigned.values()) == 3


def test_errors_keep_their_kind_and_their_traceback_on_the_way() -> None:
    try:
        raise ZeroDivisionError("here")
    except ZeroDivisionError as error:
        told = portable(error)
    assert type(told) is RuntimeError
    assert "ZeroDivisionError: here" in str(told)
    assert "test_ray_front" in told.__notes__[0]
    assert type(portable(TooMany("many", 1.0))) is TooMany
