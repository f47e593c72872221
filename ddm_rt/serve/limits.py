"""How long a client may take: to send a request's body, and to read each part of the response."""

import asyncio
import logging

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)


class _NotRead(Exception):
    """The client takes no more of the response."""


class Timeouts:
    """Around an application. A body that comes too slowly is answered with 408; who doesn't read is cut off."""

    def __init__(self, app: ASGIApp, body_s: float, write_s: float) -> None:
        self._app, self._body_s, self._write_s = app, body_s, write_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        due = asyncio.get_running_loop().time() + self._body_s
        complete = False

        async def receive_in_time() -> Message:
            nonlocal complete
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body has not arrived within {self._body_s:g} s") from None
            complete = not message.get("more_body", False)
            return message

        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self._write_s):
                    await send(message)
            except TimeoutError:
                raise _NotRead from None

        try:
            await self._app(scope, receive_in_time, send_in_time)
        except _NotRead:
            _log.warning("a client has read nothing for %g s; its connection is closed", self._write_s)
