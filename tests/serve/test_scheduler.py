"""The scheduler over a fake engine: what ends how, and what becomes of a scope's draws."""

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_bundle
from gated_engine import FailingEngine, GatedEngine
from patience import settled
from schedulers import WAIT_S, counts, scheduler_of, stopped_at

from ddm_rt.errors import DdmError
from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.errors import Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.stats import Aim
from ddm_rt.serve.scheduling.ticket import Event, Finished, ImageReady, Progress, State, Ticket
from ddm_rt.serve.settings import ServeSettings


def positions(ticket: Ticket) -> list[int]:
    return [image["position"] for image in ticket.result(WAIT_S).manifest["images"]]


def test_a_request_is_what_generate_makes_of_it() -> None:
    with scheduler_of(FakeEngine(), slots=3) as scheduler:
        asked = {"n": 7, "seed": 5, "num_steps": 3, "sampler": "ddpm", "codes": [0, -1, 1, 3, 2, 2, 0]}
        ticket = scheduler.submit(Request(**asked))
        events: list[Event] = []
        ticket.subscribe(events.append)
        generation = ticket.result(WAIT_S)
    expected = Pipeline(fake_bundle(), FakeEngine()).generate(**asked)
    assert generation.images.tobytes() == expected.images.tobytes()
    assert generation.manifest == expected.manifest
    assert generation.codes == expected.codes
    last = [event for event in events if isinstance(event, Progress)][-1:]
    assert all(event.steps_total == 21 for event in last)
    assert {event.index for event in events if isinstance(event, ImageReady)} == set(range(7))
    assert isinstance(events[-1], Finished)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 5}, "n is 5; expected 1 to 4"),
        ({"num_steps": 9}, "num_steps is 9; expected 1 to 8"),
        ({"prompt": "a cat"}, "prompt is given"),
        ({"seed": -1}, "seed is -1"),
        ({"height": 3}, "height is 3"),
        ({"sampler": "best"}, "sampler is 'best'"),
    ],
)
def test_bad_requests_are_refused_at_once_and_leave_nothing(asked: dict[str, Any], message: str) -> None:
    with scheduler_of(FakeEngine(), queue=4, max_steps=8) as scheduler:
        for _ in range(3):
            with pytest.raises(DdmError, match=message):
                scheduler.submit(Request(**{"scope": "today"} | asked), key="one")
        with pytest.raises(DdmError, match="deadline_s is 0"):
            scheduler.submit(Request(), deadline_s=0)
        assert not counts(scheduler).issued.total() - counts(scheduler).pooled.total()
        assert scheduler.submit(Request(n=4), key="one").result(WAIT_S)
        stats = scheduler.stats()
        assert settled(lambda: scheduler.stats().requests == 0)
    assert (stats.waiting, stats.failed, stats.rejected) == (0, 0, {})


def test_a_thousand_single_images_are_as_balanced_as_one_request_of_a_thousand() -> None:
    with scheduler_of(FakeEngine()) as scheduler:
        codes: dict[int, int] = {}
        waiting: list[Ticket] = []
        for seed in range(1000):
            waiting.append(scheduler.submit(Request(seed=seed, scope="today", num_steps=1 + seed % 3)))
            if len(waiting) == 50:
                for ticket in waiting:
                    (image,) = ticket.result(WAIT_S).manifest["images"]
                    codes[image["position"]] = image["code"]
                waiting.clear()
        aim = Aim("today", "uniform")
        assert scheduler.stats().assigned == {(aim, code): 250 for code in range(4)}
    whole = Pipeline(fake_bundle(), FakeEngine()).generate(n=1000, num_steps=1, balance="on")
    assert [codes[position] for position in range(1000)] == list(whole.codes)
    assert counts(scheduler).done == Counter(whole.codes)


def test_many_threads_submit_at_once() -> None:
    with scheduler_of(FakeEngine(), slots=4) as scheduler:
        tickets: list[Ticket] = []

        def client(start: int) -> None:
            tickets.extend(scheduler.submit(Request(n=2, seed=start + i, scope="today")) for i in range(10))

        threads = [threading.Thread(target=client, args=(100 * i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(position for ticket in tickets for position in positions(ticket)) == list(range(120))
    assert counts(scheduler).done.total() == 120


@pytest.mark.parametrize("call", [0, 2])
def test_cancelling_leaves_between_two_steps_and_returns_the_draws(engine: GatedEngine, call: int) -> None:
    with stopped_at(engine, call, slots=4) as scheduler:
        ticket = scheduler.submit(Request(n=6, scope="today"))
        other = scheduler.submit(Request(n=1, seed=3, scope="today"))
        assert engine.reached.wait(WAIT_S)
        assert counts(scheduler).leased.total() == 7
        assert ticket.cancel()
        assert not ticket.cancel()
        with pytest.raises(Cancelled):
            ticket.result(WAIT_S)
        assert ticket.state is State.CANCELLED
        assert counts(scheduler).pooled.total() == 6  # at once, though a step is under way
        engine.go.set()
        assert positions(other) == [6]
        assert positions(scheduler.submit(Request(n=7, scope="today"))) == [0, 1, 2, 3, 4, 5, 7]
        assert scheduler.drain(WAIT_S)
    assert engine.sizes[call + 1] == 2  # branches of the one image left
    assert scheduler.stats().cancelled == 1
    assert counts(scheduler).done.total() == 8


def test_images_are_counted_and_not_requests() -> None:
    with scheduler_of(FakeEngine()) as scheduler:
        for n in (3, 2):
            scheduler.submit(Request(n=n, num_steps=4)).result(WAIT_S)
        assert scheduler.drain(WAIT_S)
        stats = scheduler.stats()
    assert (stats.images, stats.finished, stats.steps) == (5, 2, 20)
    assert stats.ticks == 8


def test_an_image_of_a_cancelled_request_that_waits_to_be_decoded_is_no_more(engine: GatedEngine) -> None:
    with scheduler_of(engine, slots=2) as scheduler:
        engine.decoding.clear()
        first = scheduler.submit(Request(num_steps=1))
        assert settled(lambda: scheduler.stats().decoding == 1)
        second = scheduler.submit(Request(num_steps=1))
        assert settled(lambda: scheduler.stats().decoding == 2)
        assert second.cancel()
        engine.decoding.set()
        assert first.result(WAIT_S)
        assert scheduler.drain(WAIT_S)
        assert scheduler.stats().decoding == 0


def test_a_waiting_request_may_be_cancelled(engine: GatedEngine) -> None:
    with stopped_at(engine, 1, slots=2) as scheduler:
        first = scheduler.submit(Request(n=2))
        assert engine.reached.wait(WAIT_S)
        second = scheduler.submit(Request(n=3, scope="today"))
        assert scheduler.stats().waiting == 3
        assert second.state is None
        second.cancel()
        assert settled(lambda: scheduler.stats().waiting == 0)
        engine.go.set()
        assert len(first.result(WAIT_S).images) == 2
    assert counts(scheduler).pooled.total() == 3


@pytest.mark.parametrize("part", ["conditioner", "denoiser", "decoder"])
def test_only_the_request_at_fault_fails(part: str) -> None:
    engine, num_codes = FailingEngine(part, code=9), 12
    scheduler = Scheduler(Pipeline(fake_bundle(num_codes), engine), ServeSettings(slots=8))
    assert scheduler.pipeline.buckets  # which needs no code above 6
    engine.armed = True
    tickets = [scheduler.submit(Request(n=3, seed=i, codes=[0, 1, 3])) for i in range(4)]
    bad = scheduler.submit(Request(n=4, codes=[0, 1, 9, 3]))
    balanced = scheduler.submit(Request(n=num_codes, scope="today"))
    with scheduler:
        for i, ticket in enumerate(tickets):
            expected = Pipeline(fake_bundle(num_codes), FakeEngine()).generate(n=3, seed=i, codes=[0, 1, 3])
            assert ticket.result(WAIT_S).images.tobytes() == expected.images.tobytes()
        for ticket in (bad, balanced):
            with pytest.raises(RuntimeError):
                ticket.result(WAIT_S)
            assert ticket.state is State.FAILED
        assert scheduler.submit(Request(codes=[1])).result(WAIT_S)  # it lives on
        assert settled(lambda: scheduler.stats().requests == scheduler.stats().occupied == 0)
        stats = scheduler.stats()
    assert (stats.failed, stats.finished, stats.decoding, stats.waiting) == (2, 5, 0, 0)
    assert counts(scheduler).pooled.total() == num_codes
    assert not counts(scheduler).leased


def test_a_ledger_that_cannot_be_written_fails_the_request(
    engine: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at(engine, 0) as scheduler:
        ticket = scheduler.submit(Request(n=2, scope="today"))
        assert engine.reached.wait(WAIT_S)

        def refuse(*_: Any) -> None:
            raise DdmError("ledger: locked")

        with monkeypatch.context() as patch:
            patch.setattr(scheduler.pipeline.ledger, "_commit", refuse)
            engine.go.set()
            with pytest.raises(DdmError, match="locked"):
                ticket.result(WAIT_S)
        assert positions(scheduler.submit(Request(n=2, scope="today"))) == [0, 1]


def test_the_queue_is_bounded(engine: GatedEngine) -> None:
    with stopped_at(engine, 1, slots=2, queue=5) as scheduler:
        running = scheduler.submit(Request(n=2))
        assert engine.reached.wait(WAIT_S)
        waiting = [scheduler.submit(Request(n=3)), scheduler.submit(Request(n=2))]
        with pytest.raises(QueueFull, match="5 images wait, and these are 1") as caught:
            scheduler.submit(Request(scope="today"))
        assert caught.value.retry_after_s > 0
        assert not counts(scheduler).issued
        stats = scheduler.stats()
        assert (stats.waiting, stats.occupied, stats.requests, stats.rejected) == (5, 2, 3, {"queue": 1})
        engine.go.set()
        for ticket in (running, *waiting):
            ticket.result(WAIT_S)
        assert scheduler.submit(Request(n=5)).result(WAIT_S)


def test_a_key_has_a_limit_and_no_key_has_none(engine: GatedEngine) -> None:
    with stopped_at(engine, 0, per_key=2) as scheduler:
        tickets = [scheduler.submit(Request(), key="one") for _ in range(2)]
        with pytest.raises(TooMany, match="2 requests of this key"):
            scheduler.submit(Request(), key="one")
        tickets += [scheduler.submit(Request(), key=key) for key in ("two", *[""] * 9)]
        engine.go.set()
        for ticket in tickets:
            ticket.result(WAIT_S)
        assert settled(lambda: scheduler.stats().requests == 0)
        assert scheduler.submit(Request(), key="one").result(WAIT_S)
    assert scheduler.stats().rejected == {"key": 1}


def test_draining_ends_what_was_taken_in(engine: GatedEngine) -> None:
    with stopped_at(engine, 1, slots=2) as scheduler:
        tickets = [scheduler.submit(Request(n=3, scope="today")) for _ in range(2)]
        assert engine.reached.wait(WAIT_S)
        assert not scheduler.drain(0.01)
        with pytest.raises(Draining):
            scheduler.submit(Request())
        engine.go.set()
        assert scheduler.drain(WAIT_S)
        assert {ticket.state for ticket in tickets} == {State.FINISHED}
    assert counts(scheduler).done.total() == 6


def test_closing_fails_what_is_left_and_returns_its_draws(engine: GatedEngine) -> None:
    scheduler = stopped_at(engine, 1, slots=2)
    scheduler.start()
    tickets = [scheduler.submit(Request(n=3, scope="today")) for _ in range(2)]
    assert engine.reached.wait(WAIT_S)
    threading.Timer(0.05, engine.go.set).start()
    scheduler.close()
    for ticket in tickets:
        with pytest.raises(Draining):
            ticket.result(0)
    with pytest.raises(Draining):
        scheduler.submit(Request())
    assert counts(scheduler).pooled.total() == 6
    assert not counts(scheduler).leased


def test_a_scheduler_that_was_never_started_closes() -> None:
    scheduler = scheduler_of(FakeEngine())
    ticket = scheduler.submit(Request(scope="today"))
    scheduler.close()
    assert ticket.claimed
    assert counts(scheduler).pooled.total() == 1


def test_shapes_take_turns() -> None:
    with scheduler_of(FakeEngine(), slots=4) as scheduler:
        sizes = [(8, 8), (8, 12), (12, 8), (8, 8)]
        tickets = [
            scheduler.submit(Request(n=3, seed=i, height=height, width=width))
            for i, (height, width) in enumerate(sizes)
        ]
        images = [ticket.result(WAIT_S).images for ticket in tickets]
    plain = Pipeline(fake_bundle(), FakeEngine())
    for i, ((height, width), found) in enumerate(zip(sizes, images, strict=True)):
        expected = plain.generate(n=3, seed=i, height=height, width=width).images
        assert found.shape == (3, height, width, 3)
        np.testing.assert_array_equal(found, expected)


def test_an_error_in_the_loop_itself_fails_what_is_under_way_and_no_more(
    monkeypatch: pytest.MonkeyPatch, engine: GatedEngine
) -> None:
    with stopped_at(engine, 0) as scheduler:
        ticket = scheduler.submit(Request(scope="today"))
        assert engine.reached.wait(WAIT_S)
        with monkeypatch.context() as patch:
            patch.setattr(scheduler, "_account", lambda ticked: 1 // 0)
            engine.go.set()
            with pytest.raises(ZeroDivisionError):
                ticket.result(WAIT_S)
        assert positions(scheduler.submit(Request(scope="today"))) == [0]


def test_a_request_that_is_being_checked_while_the_server_closes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, checking, closed = scheduler_of(FakeEngine()), threading.Event(), threading.Event()
    first_states = scheduler.pipeline.first_states

    def slow(*arguments: Any) -> Any:
        checking.set()
        assert closed.wait(WAIT_S)
        return first_states(*arguments)

    monkeypatch.setattr(scheduler.pipeline, "first_states", slow)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(scheduler.submit, Request(scope="today"))
        assert checking.wait(WAIT_S)
        scheduler.close()
        closed.set()
        with pytest.raises(Draining):
            asking.result(WAIT_S)
    assert scheduler.stats().requests == 0
    assert counts(scheduler).pooled.total() == 1
