"""How much a client may send: the most that is allowed is allowed, and no byte more."""

import asyncio
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from ddm_rt.serve.http_settings import HttpSettings
from ddm_rt.serve.limits import Limits

MOST = 10  # bytes of a body


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
