"""Tickets: events in order, ends once, from several threads."""

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from ddm_rt.serve.scheduling.ticket import Event, Failed, Finished, ImageReady, Progress, State, Ticket

MANIFEST: dict[str, Any] = {"images": [{"code": 3}, {"code": -1}]}


def image(value: int) -> NDArray[np.uint8]:
    return np.full((2, 2, 3), value, np.uint8)


def test_events_come_in_order_and_the_result_holds_all_of_them() -> None:
    ticket = Ticket(2, 8, deadline=1.0)
    events: list[Event] = []
    ticket.subscribe(events.append)
    assert ticket.state is None
    ticket.advance(4)
    assert not ticket.deliver(1, image(7))
    ticket.advance(3)  # late, from another thread
    assert ticket.deliver(0, image(5))
    assert ticket.claim()
    ticket.end(Finished(MANIFEST))
    assert [type(event) for event in events] == [Progress, ImageReady, ImageReady, Finished]
    assert [event.index for event in events if isinstance(event, ImageReady)] == [1, 0]
    generation = ticket.result(0)
    assert generation.images[:, 0, 0, 0].tolist() == [5, 7]
    assert generation.codes == (3, -1)
    assert generation.manifest is MANIFEST
    assert ticket.state is State.FINISHED


def test_who_comes_late_is_told_what_was() -> None:
    ticket = Ticket(2, 8, deadline=1.0)
    for done in (2, 4):
        ticket.advance(done)
    ticket.deliver(1, image(7))
    early: list[Event] = []
    ticket.subscribe(early.append, without=(Progress,))
    assert [type(event) for event in early] == [ImageReady]
    assert not ticket.wants_progress
    ticket.subscribe(lambda event: None)
    assert ticket.wants_progress
    ticket.claim()
    ticket.end(Failed(OSError("gone")))
    late: list[Event] = []
    ticket.subscribe(late.append)
    assert late[0] == Progress(4, 8)
    assert [type(event) for event in late[1:]] == [ImageReady, Failed]
    assert [type(event) for event in early] == [ImageReady, Failed]
    with pytest.raises(OSError, match="gone"):
        ticket.result(0)


def test_the_same_progress_is_told_once() -> None:
    ticket = Ticket(2, 8, deadline=1.0)
    told: list[Event] = []
    ticket.subscribe(told.append)
    for steps in (0, 3, 3, 4):
        ticket.advance(steps)
    assert told == [Progress(3, 8), Progress(4, 8)]


def test_after_its_end_a_request_stays_as_it_is_and_keeps_nobody_who_listens() -> None:
    ticket = Ticket(2, 8, deadline=1.0)
    ticket.claim()
    ticket.end(Failed(OSError("gone")))
    ticket.advance(4)
    assert ticket.state is State.FAILED
    late: list[Event] = []
    ticket.subscribe(late.append)
    assert [type(event) for event in late] == [Failed]
    assert not ticket.wants_progress


def test_a_callback_may_subscribe_and_cancel() -> None:
    cancelled: list[Ticket] = []
    ticket = Ticket(2, 8, 1.0, cancelled.append)
    inner: list[Event] = []

    def callback(event: Event) -> None:
        ticket.subscribe(inner.append)
        ticket.cancel()

    ticket.subscribe(callback)
    ticket.deliver(0, image(1))
    assert cancelled == [ticket]
    ticket.deliver(1, image(2))
    # The second image reaches a second subscription with the first one before it, then the first subscription.
    assert [event.index for event in inner if isinstance(event, ImageReady)] == [0, 0, 1, 1]


def test_a_subscriber_that_raises_is_told_no_more(caplog: pytest.LogCaptureFixture) -> None:
    ticket = Ticket(2, 8, deadline=1.0)
    told: list[Event] = []

    def broken(event: Event) -> None:
        told.append(event)
        raise ZeroDivisionError

    other: list[Event] = []
    ticket.subscribe(broken)
    ticket.subscribe(other.append)
    ticket.advance(1)
    ticket.advance(2)
    assert len(told) == 1
    assert len(other) == 2
    assert "told no more" in caplog.text


def test_it_ends_once() -> None:
    for _ in range(50):
        ticket = Ticket(1, 1, 1.0)
        barrier = threading.Barrier(4)
        won: list[bool] = []

        def claim(ticket: Ticket = ticket, barrier: threading.Barrier = barrier, won: list[bool] = won) -> None:
            barrier.wait()
            won.append(ticket.claim())

        threads = [threading.Thread(target=claim) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(won) == [False, False, False, True]
        assert not ticket.cancel()


def test_result_gives_up() -> None:
    with pytest.raises(TimeoutError, match=r"0\.01 s"):
        Ticket(1, 1, 1.0).result(0.01)
