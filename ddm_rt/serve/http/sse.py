"""A ticket's events on the event loop, and the server-sent events that clients read of them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from starlette.types import Receive

from ddm_rt.serve.scheduling.errors import DeadlineExceeded
from ddm_rt.serve.scheduling.ticket import Event, Failed, Finished, Progress, Ticket

KEEP_ALIVE = b": waiting\n\n"

_PROGRESS_S = 0.1  # between two tellings of progress


async def follow(
    ticket: Ticket, *, idle_s: float, grace_s: float, progress: bool = True
) -> AsyncIterator[Event | None]:
    """The ticket's images, ten times a second at most its progress (or, without `progress`, never), and its end. None
    after each `idle_s` seconds without any.

    Who stops iterating cancels the request. One that hasn't ended `grace_s` seconds past its deadline has failed.
    """
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()
    due = 0.0

    def put(event: Event) -> None:
        nonlocal due
        if isinstance(event, Progress):
            now = time.monotonic()
            if now < due:
                return
            due = now + _PROGRESS_S
        with suppress(RuntimeError):  # the loop is closed: nobody listens
            loop.call_soon_threadsafe(events.put_nowait, event)

    ticket.subscribe(put, without=() if progress else (Progress,))
    last = ticket.deadline + grace_s
    try:
        while True:
            left = last - time.monotonic()
            try:
                async with asyncio.timeout(min(idle_s, left)):
                    event = await events.get()
            except TimeoutError:
                if left > idle_s:
                    yield None
                    continue
                event = Failed(DeadlineExceeded("the request has not ended by its deadline"))
            yield event
            if isinstance(event, Finished | Failed):
                return
    finally:
        ticket.cancel()  # nothing, where it has ended


@asynccontextmanager
async def cancel_when_gone(receive: Receive, ticket: Ticket) -> AsyncIterator[Callable[[], bool]]:
    """Within the block, the request is cancelled when its client leaves; gives a function that tells whether it has.
    The request's body has been read before.
    """
    gone = False

    async def watch() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        ticket.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield lambda: gone
    finally:
        watching.cancel()


def encode(name: str, data: Mapping[str, Any]) -> bytes:
    """One event, with its name in the data too, where OpenAI's clients look for it."""
    return f"event: {name}\ndata: {json.dumps({'type': name, **data}, allow_nan=False)}\n\n".encode()


def encode_error(tree: Mapping[str, Any]) -> bytes:
    return f"event: error\ndata: {json.dumps(tree, allow_nan=False)}\n\n".encode()
