"""A ticket's events reach the event loop in order, and its end always comes."""

import asyncio
import json
import threading
import time
from typing import Any

import numpy as np

from ddm_rt.serve.events import cancel_when_gone, encode, encode_error, follow
from ddm_rt.serve.refusals import DeadlineExceeded
from ddm_rt.serve.tickets import Event, Failed, Finished, ImageReady, Progress, State, Ticket

IMAGE = np.zeros((2, 2, 3), np.uint8)


def a_ticket(seconds: float = 60.0, **options: Any) -> Ticket:
    return Ticket(2, 20, time.monotonic() + seconds, **options)


async def all_of(ticket: Ticket, idle_s: float = 5.0) -> list[Event | None]:
    return [event async for event in follow(ticket, idle_s=idle_s, grace_s=0.0)]


def finish(ticket: Ticket) -> None:
    for steps in range(1, 21):
        ticket.advance(steps)
    for index in (1, 0):
        ticket.deliver(index, IMAGE)
    assert ticket.claim()
    ticket.end(Finished({"images": []}), State.FINISHED)


def test_events_before_and_after_the_subscription() -> None:
    ticket = a_ticket()
    ticket.deliver(0, IMAGE)

    async def main() -> list[Event | None]:
        thread = threading.Timer(0.05, lambda: (ticket.deliver(1, IMAGE), ticket.claim(), end()))
        thread.start()
        return await all_of(ticket)

    def end() -> None:
        ticket.end(Finished({"images": []}), State.FINISHED)

    events = asyncio.run(main())
    assert [type(event) for event in events] == [ImageReady, ImageReady, Finished]


def test_progress_is_told_ten_times_a_second_at_most() -> None:
    events = asyncio.run(_while_running())
    assert 1 <= sum(isinstance(event, Progress) for event in events) < 10
    assert isinstance(events[-1], Finished)


async def _while_running() -> list[Event | None]:
    ticket = a_ticket()
    threading.Timer(0.02, finish, [ticket]).start()
    return await all_of(ticket)


def test_silence_is_told_and_ends_with_the_deadline() -> None:
    events = asyncio.run(all_of(a_ticket(0.25), idle_s=0.1))
    assert events[:-1] == [None, None]
    assert isinstance(events[-1], Failed)
    assert isinstance(events[-1].error, DeadlineExceeded)


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
        await asyncio.sleep(0.02)
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
            await asyncio.sleep(0.02)

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
