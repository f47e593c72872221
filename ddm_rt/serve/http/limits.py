"""How much a client may send, and how long it may take to send it; and responses in parts."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddm_rt.serve.http.settings import HttpSettings

_PART = 2**16  # bytes


class Limits:
    """Around an application. A body that is too long, or comes too slowly, raises HTTPException (413, 408) in who reads
    it.
    """

    def __init__(self, app: ASGIApp, http: HttpSettings) -> None:
        self._app, self._http = app, http

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body_s, most = self._http.body_s, self._http.max_body_bytes
        due = asyncio.get_running_loop().time() + body_s
        complete, got = False, 0

        async def limited_receive() -> Message:
            nonlocal complete, got
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(due):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the body has not arrived within {body_s:g} s") from None
            complete = not message.get("more_body", False)
            got += len(message.get("body", b""))
            if got > most:
                raise HTTPException(413, f"the body is longer than {most} bytes")
            return message

        async def send_in_parts(message: Message) -> None:
            """Each one waits until the client has taken those before it: the server sees whether it reads at all."""
            body, more = message.get("body", b""), message.get("more_body", False)
            if len(body) <= _PART:
                await send(message)
                return
            for start in range(0, len(body), _PART):
                more_parts = more or start + _PART < len(body)
                await send({"type": message["type"], "body": body[start : start + _PART], "more_body": more_parts})

        await self._app(scope, limited_receive, send_in_parts)
