"""What was taken in: what is left to do is known to the step, and what can't be in time is refused."""

from typing import Any

import pytest

from ddm_rt.serve.scheduling.admission import Book
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, QueueFull
from ddm_rt.serve.scheduling.queue import Work
from ddm_rt.serve.scheduling.settings import ServeSettings
from ddm_rt.serve.scheduling.ticket import Ticket

SHAPE = (1, 2, 2)
STEP_S = 0.25  # of one image
QUEUE = 8


def book_of(slots: int = 1, **settings: Any) -> Book:
    book = Book(ServeSettings(slots=slots, queue=QUEUE, **settings))
    book.pace.saw(SHAPE, images=slots, seconds=slots * STEP_S)
    return book


def work(number: int, n: int = 1, steps: int = 4, deadline: float = 1000.0) -> Work:
    return Work(number, n, steps, SHAPE, "", 0, Ticket(n, n * steps, deadline))


def seconds_of_all(book: Book) -> float:
    """What is to be done, as a request that has no room is told: to come again when half of it is."""
    with pytest.raises(QueueFull) as caught:
        book.enter(work(99, n=QUEUE + 1), now=0.0)
    return 2 * caught.value.retry_after_s


def test_what_is_left_to_do_is_what_was_taken_in_less_what_is_done_or_forgotten() -> None:
    book, first, second = book_of(), work(0, n=2, steps=8), work(1, n=1, steps=16)
    book.enter(first, now=0.0)
    book.enter(second, now=0.0)
    assert seconds_of_all(book) == 32 * STEP_S
    book.advance(first, 6)
    assert seconds_of_all(book) == 26 * STEP_S
    book.forget(first)
    assert seconds_of_all(book) == 16 * STEP_S
    book.advance(first, 2)  # a tick that was under way
    book.forget(first)
    assert seconds_of_all(book) == 16 * STEP_S


def test_a_request_with_just_the_time_that_it_takes_is_taken_in_and_one_with_less_is_not() -> None:
    book = book_of()
    with pytest.raises(DeadlineExceeded, match=r"takes 1 s here at the least"):
        book.enter(work(0, steps=4, deadline=0.99), now=0.0)
    book.enter(work(1, steps=4, deadline=1.0), now=0.0)


def test_an_image_waits_for_the_slot_before_it_and_takes_as_long_as_full_slots_do() -> None:
    """Of 4 slots, so that steps of one image come every second: 8 s for the one before, 8 s for its own."""
    book, running = book_of(slots=4, max_steps=8), work(0, steps=8)
    book.enter(running, now=0.0)
    book.queue(running)
    assert book.pick(1, now=0.0) == [(running, 0)]
    with pytest.raises(QueueFull, match="not everything would be done in time") as caught:
        book.enter(work(1, steps=8, deadline=10.0), now=0.0)
    assert caught.value.retry_after_s == pytest.approx(16 - 0.8 * 10)
    book.enter(work(2, steps=8, deadline=20.0), now=0.0)
