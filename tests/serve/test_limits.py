"""How much a client may send: the most that is allowed, and no byte more; and responses in parts."""

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ddm_rt.serve.http.middleware import Limits
from ddm_rt.serve.settings import HttpSettings

MOST = 10  # bytes of a body
PART = 2**16  # bytes of a response at once


def received(*parts: bytes) -> bytes:
    """The body that an application behind the limits reads of one that comes in `parts`."""
    got: list[bytes] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            got.append(message["body"])
            more = message["more_body"]

    async def main() -> None:
        coming = iter(parts)
        left = len(parts)

        async def receive() -> Message:
            nonlocal left
            left -= 1
            return {"type": "http.request", "body": next(coming), "more_body": left > 0}

        async def send(message: Message) -> None:
            raise AssertionError(message)

        scope: dict[str, Any] = {"type": "http"}
        await Limits(application, HttpSettings(max_body_bytes=MOST))(scope, receive, send)

    asyncio.run(main())
    return b"".join(got)


@pytest.mark.parametrize("parts", [(b"x" * MOST,), (b"x" * (MOST - 1), b"x"), (b"x" * MOST, b"")])
def test_a_body_of_just_the_allowed_length_arrives(parts: tuple[bytes, ...]) -> None:
    assert received(*parts) == b"x" * MOST


@pytest.mark.parametrize("parts", [(b"x" * (MOST + 1),), (b"x" * MOST, b"x")])
def test_a_body_of_one_byte_more_is_refused(parts: tuple[bytes, ...]) -> None:
    with pytest.raises(HTTPException, match=f"longer than {MOST} bytes") as caught:
        received(*parts)
    assert caught.value.status_code == 413


def sent(*parts: bytes) -> list[tuple[bytes, bool]]:
    """What a client gets of a response in those `parts`: each message's bytes, and whether it says that more come."""
    messages: list[Message] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number, part in enumerate(parts, start=1):
            await send({"type": "http.response.body", "body": part, "more_body": number < len(parts)})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        messages.append(message)

    asyncio.run(Limits(application, HttpSettings())({"type": "http"}, receive, send))
    assert messages[0]["type"] == "http.response.start"
    return [(message["body"], message["more_body"]) for message in messages[1:]]


def test_a_response_is_sent_in_parts_and_the_last_one_says_so() -> None:
    long = bytes(range(256)) * 512  # two parts
    assert sent(long) == [(long[:PART], True), (long[PART:], False)]
    assert sent(long + b"x") == [(long[:PART], True), (long[PART:], True), (b"x", False)]
    assert sent(long, b"end") == [(long[:PART], True), (long[PART:], True), (b"end", False)]
    assert sent(b"short") == [(b"short", False)]
