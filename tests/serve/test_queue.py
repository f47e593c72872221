"""What was taken in: what is left to do is known to the step, and what can't be in time is refused."""

from typing import Any

import pytest

from ddm_rt.serve.scheduling.errors import DeadlineExceeded, QueueFull
from ddm_rt.serve.scheduling.queue import RequestQueue, Work
from ddm_rt.serve.scheduling.ticket import Ticket
from ddm_rt.serve.settings import ServeSettings

SHAPE = (1, 2, 2)
STEP_S = 0.25  # of one image
QUEUE = 8


def queue_of(slots: int = 1, **settings: Any) -> RequestQueue:
    requests = RequestQueue(ServeSettings(slots=slots, queue=QUEUE, **settings))
    requests.pace.saw(SHAPE, images=slots, seconds=slots * STEP_S)
    return requests


def work(n: int = 1, steps: int = 4, deadline: float = 1000.0) -> Work:
    return Work(n, steps, SHAPE, "", 0, Ticket(n, n * steps, deadline))


def seconds_of_all(requests: RequestQueue) -> float:
    """What is to be done, as a request that has no room is told: to come again when half of it is."""
    with pytest.raises(QueueFull) as caught:
        requests.enter(work(n=QUEUE + 1), now=0.0)
    return 2 * caught.value.retry_after_s


def test_what_is_left_to_do_is_what_was_taken_in_less_what_is_done_or_forgotten() -> None:
    requests, first, second = queue_of(), work(n=2, steps=8), work(n=1, steps=16)
    requests.enter(first, now=0.0)
    requests.enter(second, now=0.0)
    assert seconds_of_all(requests) == 32 * STEP_S
    requests.advance(first, 6)
    assert seconds_of_all(requests) == 26 * STEP_S
    requests.forget(first)
    assert seconds_of_all(requests) == 16 * STEP_S
    requests.advance(first, 2)  # a tick that was under way
    requests.forget(first)
    assert seconds_of_all(requests) == 16 * STEP_S


def test_a_request_with_just_the_time_that_it_takes_is_taken_in_and_one_with_less_is_not() -> None:
    requests = queue_of()
    with pytest.raises(DeadlineExceeded, match=r"takes 1 s here at the least"):
        requests.enter(work(steps=4, deadline=0.99), now=0.0)
    requests.enter(work(steps=4, deadline=1.0), now=0.0)


def test_an_image_waits_for_the_slot_before_it_and_takes_as_long_as_full_slots_do() -> None:
    """Of 4 slots, so that steps of one image come every second: 8 s for the one before, 8 s for its own."""
    requests, running = queue_of(slots=4, max_steps=8), work(steps=8)
    requests.enter(running, now=0.0)
    requests.add(running)
    assert requests.pick(1, now=0.0) == [(running, 0)]
    with pytest.raises(QueueFull, match="not everything would be done in time") as caught:
        requests.enter(work(steps=8, deadline=10.0), now=0.0)
    assert caught.value.retry_after_s == pytest.approx(16 - 0.8 * 10)
    requests.enter(work(steps=8, deadline=20.0), now=0.0)


def test_a_forgotten_request_has_neither_an_image_that_waits_nor_a_deadline() -> None:
    requests, first, second = queue_of(), work(n=2, deadline=900.0), work()
    for each in (first, second):
        requests.enter(each, now=0.0)
        requests.add(each)
    assert requests.soonest() == 900.0
    requests.forget(first)
    assert (requests.soonest(), requests.waiting) == (1000.0, 1)
    assert requests.pick(2, now=0.0) == [(second, 0)]
    assert not requests.queued
    assert requests.expired(now=950.0) == []
    assert requests.expired(now=1000.0) == [second]
    assert requests.expired(now=1000.0) == []
