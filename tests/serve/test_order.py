"""Who goes first in the scheduler, and what is too late."""

import time

import pytest
from gated_engine import GatedEngine
from patience import settled
from schedulers import WAIT_S, counts, scheduler_of, stopped_at

from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, QueueFull
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.ticket import Event, Failed, ImageReady, Progress, State, Ticket


class Order:
    """In which order images and ends of several tickets came: one delivery thread tells of all of them."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def watch(self, ticket: Ticket, name: str) -> Ticket:
        def told(event: Event) -> None:
            if isinstance(event, ImageReady):
                self.names.append(name)
            elif isinstance(event, Failed):
                self.names.append(f"{name} failed")

        ticket.subscribe(told, without=(Progress,))
        return ticket


def test_one_image_waits_no_more_than_a_few_ticks_for_a_request_of_64(engine: GatedEngine) -> None:
    steps, slots, order = 4, 8, Order()
    with stopped_at(engine, 2, slots=slots) as scheduler:
        large = order.watch(scheduler.submit(Request(n=64, num_steps=steps)), "large")
        assert engine.reached.wait(WAIT_S)
        small = order.watch(scheduler.submit(Request(n=1, num_steps=steps)), "small")
        engine.go.set()
        small.result(WAIT_S)
        large.result(WAIT_S)
    # A slot comes free after two more ticks; four later the image is done. Without taking turns it would be the last.
    assert order.names.index("small") <= 2 * slots


def test_requests_take_turns_image_by_image(engine: GatedEngine) -> None:
    order = Order()
    with stopped_at(engine, 0, slots=1) as scheduler:
        first = order.watch(scheduler.submit(Request(n=4, num_steps=1)), "a")
        assert engine.reached.wait(WAIT_S)
        tickets = [first, *(order.watch(scheduler.submit(Request(n=3, num_steps=1)), name) for name in "bc")]
        engine.go.set()
        for ticket in tickets:
            ticket.result(WAIT_S)
    assert "".join(order.names) == "abcabcabca"


def test_priorities_go_first(engine: GatedEngine) -> None:
    order = Order()
    with stopped_at(engine, 0, slots=1) as scheduler:
        tickets = [order.watch(scheduler.submit(Request(n=2, num_steps=1)), "low")]
        assert engine.reached.wait(WAIT_S)
        for priority, name in ((0, "low"), (1, "high"), (2, "higher")):
            tickets.append(order.watch(scheduler.submit(Request(n=2, num_steps=1), priority=priority), name))
        engine.go.set()
        for ticket in tickets:
            ticket.result(WAIT_S)
    assert order.names == ["low", "higher", "higher", "high", "high", "low", "low", "low"]


def test_a_request_that_is_late_fails_and_others_go_on(engine: GatedEngine) -> None:
    with stopped_at(engine, 1, slots=2) as scheduler:
        other = scheduler.submit(Request(n=1))
        late = scheduler.submit(Request(n=3, scope="today"), deadline_s=1.0)
        assert engine.reached.wait(WAIT_S)
        engine.now += 1.0
        engine.go.set()
        with pytest.raises(DeadlineExceeded):
            late.result(WAIT_S)
        other.result(WAIT_S)
        assert scheduler.drain(WAIT_S)
    assert late.state is State.FAILED
    assert counts(scheduler).pooled.total() == 3


def paced(scheduler: Scheduler, engine: GatedEngine) -> None:
    """Steps take 10 ms, which the scheduler has seen; the next one stops."""
    engine.step_s = 0.01
    scheduler.submit(Request(n=4, num_steps=10)).result(WAIT_S)
    engine.stop_at = len(engine.sizes)


def test_what_cannot_be_in_time_is_refused_early(engine: GatedEngine) -> None:
    with scheduler_of(engine, slots=2) as scheduler:
        paced(scheduler, engine)
        with pytest.raises(DeadlineExceeded, match="at the least"):
            scheduler.submit(Request(num_steps=100), deadline_s=0.9)
        alone = scheduler.submit(Request(num_steps=80), deadline_s=0.9)
        assert alone.cancel()
        with pytest.raises(Cancelled):
            alone.result(WAIT_S)
        backlog = [scheduler.submit(Request(n=8, num_steps=10)) for _ in range(4)]  # 1.6 s
        with pytest.raises(QueueFull, match="in time") as caught:
            scheduler.submit(Request(num_steps=10), deadline_s=1.5, priority=-1)
        assert 0.3 < caught.value.retry_after_s < 1.0
        in_time = scheduler.submit(Request(num_steps=10), deadline_s=1.5)  # before the others
        with pytest.raises(QueueFull, match="in time"):  # in time itself, but then that one would not be
            scheduler.submit(Request(n=24, num_steps=10), priority=1)
        engine.go.set()
        for ticket in (in_time, *backlog):
            ticket.result(WAIT_S)
    assert scheduler.stats().rejected == {"deadline": 1, "queue": 2}


def test_in_a_hurry_the_earliest_deadline_goes_first(engine: GatedEngine) -> None:
    """Taking turns to the end, the request with little time would be done after 1.2 s."""
    order = Order()
    with scheduler_of(engine, slots=2) as scheduler:
        paced(scheduler, engine)
        tickets = [order.watch(scheduler.submit(Request(n=16, num_steps=8)), "patient") for _ in range(3)]
        assert engine.reached.wait(WAIT_S)
        pressed = order.watch(scheduler.submit(Request(n=8, num_steps=8), deadline_s=1.0), "pressed")
        engine.go.set()
        for ticket in (pressed, *tickets):
            ticket.result(WAIT_S)
    places = [i for i, name in enumerate(order.names) if name == "pressed"]
    assert places[1] > 2  # there was time for turns at first
    assert places[-1] < 25


def test_sampling_waits_where_decoding_does_not_keep_up(engine: GatedEngine) -> None:
    with scheduler_of(engine, slots=2) as scheduler:
        engine.decoding.clear()
        ticket = scheduler.submit(Request(n=12, num_steps=1))

        def stands() -> bool:
            stats = scheduler.stats()
            return (stats.decoding, stats.occupied, stats.waiting) == (4, 0, 8)

        assert settled(stands)
        time.sleep(0.02)  # it would go on by itself
        assert stands()
        engine.decoding.set()
        assert len(ticket.result(WAIT_S).images) == 12
