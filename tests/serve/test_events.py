"""A ticket's events reach the event loop in order, and its end always comes."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from patience import PATIENCE_S, settled

from ddm_rt.serve.http import sse
from ddm_rt.serve.http.sse import cancel_when_gone, encode, encode_error, follow
from ddm_rt.serve.scheduling.errors import DeadlineExceeded
from ddm_rt.serve.scheduling.ticket import Event, Failed, Finished, ImageReady, Progress, Ticket

IMAGE = np.zeros((2, 2, 3), np.uint8)


def a_ticket(seconds: float = PATIENCE_S, **options: Any) -> Ticket:
    return Ticket(2, 20, time.monotonic() + seconds, **options)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What `follow` takes for the time, in seconds: its one item."""
    now = [time.monotonic()]
    monkeypatch.setattr(sse, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


async def all_of(ticket: Ticket, idle_s: float = PATIENCE_S) -> list[Event | None]:
    return [event async for event in follow(ticket, idle_s=idle_s, grace_s=0.0)]


def finish(ticket: Ticket) -> None:
    for steps in range(1, 21):
        ticket.advance(steps)
    for index in (1, 0):
        ticket.deliver(index, IMAGE)
    assert ticket.claim()
    ticket.end(Finished({"images": []}))


def test_events_before_and_after_the_subscription() -> None:
    ticket = a_ticket()
    ticket.deliver(0, IMAGE)

    async def main() -> list[Event | None]:
        threading.Thread(target=go_on).start()
        return await all_of(ticket)

    def go_on() -> None:
        assert settled(lambda: ticket.wants_progress)  # somebody listens
        ticket.deliver(1, IMAGE)
        assert ticket.claim()
        ticket.end(Finished({"images": []}))

    events = asyncio.run(main())
    assert [type(event) for event in events] == [ImageReady, ImageReady, Finished]


def test_progress_is_told_ten_times_a_second_at_most(clock: list[float]) -> None:
    ticket = a_ticket()

    async def main() -> list[Event | None]:
        threading.Thread(target=go_on).start()
        return await all_of(ticket)

    def go_on() -> None:
        assert settled(lambda: ticket.wants_progress)
        for seconds, steps in ((0.0, 1), (0.05, 2), (0.04, 3), (0.02, 4), (0.09, 5), (1.0, 6), (0.0, 7)):
            clock[0] += seconds
            ticket.advance(steps)
        finish(ticket)

    told = [event.steps_done for event in asyncio.run(main()) if isinstance(event, Progress)]
    assert told == [1, 4, 6]


def test_silence_is_told_and_ends_with_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by the idle time whenever it is looked at."""
    ticks = iter(range(100))
    monkeypatch.setattr(sse, "time", SimpleNamespace(monotonic=lambda: 0.01 * next(ticks)))
    told = asyncio.run(all_of(Ticket(2, 20, deadline=0.025), idle_s=0.01))
    assert told[:-1] == [None, None]
    assert isinstance(told[-1], Failed)
    assert isinstance(told[-1].error, DeadlineExceeded)


def test_past_its_deadline_a_request_has_the_grace_to_end() -> None:
    async def main() -> None:
        events = follow(a_ticket(-1.0), idle_s=0.001, grace_s=3600.0)
        assert await anext(events) is None
        await events.aclose()

    asyncio.run(main())


def test_who_stops_listening_cancels() -> None:
    cancelled: list[Ticket] = []

    async def main() -> None:
        ticket = a_ticket(on_cancel=cancelled.append)
        listening = asyncio.create_task(all_of(ticket))
        while not ticket.wants_progress:
            await asyncio.sleep(0)
        listening.cancel()
        await asyncio.wait([listening])
        assert cancelled == [ticket]

    asyncio.run(main())


def test_a_finished_request_is_not_cancelled() -> None:
    cancelled: list[Ticket] = []
    ticket = a_ticket(on_cancel=cancelled.append)
    finish(ticket)
    asyncio.run(all_of(ticket))
    assert not cancelled


def test_a_client_that_leaves_cancels() -> None:
    cancelled: list[Ticket] = []

    async def main(leaves: bool) -> None:
        messages = asyncio.Queue[dict[str, Any]]()
        async with cancel_when_gone(messages.get, a_ticket(on_cancel=cancelled.append)):
            await messages.put({"type": "http.request", "body": b"", "more_body": False})
            if leaves:
                await messages.put({"type": "http.disconnect"})
            while not messages.empty():
                await asyncio.sleep(0)

    asyncio.run(main(leaves=False))
    assert not cancelled
    asyncio.run(main(leaves=True))
    assert len(cancelled) == 1


def test_a_loop_that_is_gone_disturbs_nobody() -> None:
    ticket, told = a_ticket(), []

    async def main() -> None:
        events = follow(ticket, idle_s=0.01, grace_s=0.0)
        assert await anext(events) is None

    asyncio.run(main())
    ticket.subscribe(told.append)
    ticket.deliver(0, IMAGE)
    assert [type(event) for event in told] == [ImageReady]


def test_an_event_is_three_lines() -> None:
    name, data, end = encode("image_generation.progress", {"text": "two\nlines\r"}).decode().split("\n", 2)
    assert name == "event: image_generation.progress"
    assert json.loads(data.removeprefix("data: ")) == {"type": "image_generation.progress", "text": "two\nlines\r"}
    assert end == "\n"
    assert encode_error({"error": {}}).startswith(b"event: error\ndata: ")
