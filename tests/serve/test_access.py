"""One log line and one count for each request, however it ended."""

import asyncio
import logging
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from ddm_rt.serve.http.middleware import Access, notes


class Counted:
    """In place of metrics."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str, int]] = []
        self.sent: list[Message] = []

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.answers.append((method, route, status))


def logged(caplog: pytest.LogCaptureFixture, status: int | None, **scope: Any) -> tuple[Any, Counted]:
    """The log record and the count of a request that is answered with `status`; None: the client leaves before.
    An application that is to answer with 500 raises, after its answer has begun with 599.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        notes(scope)["key"] = "alice"
        if status in (500, 599):
            if status == 599:
                await send({"type": "http.response.start", "status": 200, "headers": []})
            raise ZeroDivisionError
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        raise AssertionError

    counted = Counted()

    async def send(message: Message) -> None:
        counted.sent.append(message)

    request = {"type": "http", "method": "GET", "path": "/secret", "client": ("192.0.2.1", 1234)} | scope
    with caplog.at_level(logging.DEBUG, "ddm_rt.serve.http.middleware"):
        asyncio.run(Access(application, counted)(request, receive, send))
    record = caplog.records[-1]
    return record, counted


@pytest.mark.parametrize(("status", "said"), [(200, 200), (404, 404), (None, 499)])
def test_the_status_is_the_answer_s_or_that_the_client_left(
    caplog: pytest.LogCaptureFixture, status: int | None, said: int
) -> None:
    record, counted = logged(caplog, status)
    assert counted.answers == [("GET", "(none)", said)]
    assert record.levelname == "INFO"
    fields = {name: value for name, value in record.fields.items() if name not in ("ms", "request_id")}
    assert fields == {"method": "GET", "route": "(none)", "status": said, "client": "192.0.2.1", "key": "alice"}


def headers(counted: Counted) -> dict[bytes, bytes]:
    return dict(counted.sent[0]["headers"])


def test_what_raises_is_logged_and_answered_as_the_server_s_failure(caplog: pytest.LogCaptureFixture) -> None:
    record, counted = logged(caplog, 500)
    assert record.fields["status"] == 500
    assert caplog.records[0].exc_info is not None
    assert counted.sent[0]["status"] == 500
    assert headers(counted)[b"x-request-id"].decode() == record.fields["request_id"]


def test_what_raises_in_the_middle_of_an_answer_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        logged(caplog, 599)


@pytest.mark.parametrize(
    ("asked", "kept"), [("job-7.a_b", True), ("x" * 129, False), ("", False), ("two words", False), ("a\nb", False)]
)
def test_a_response_has_the_request_s_id_and_the_time_it_took(
    caplog: pytest.LogCaptureFixture, asked: str, kept: bool
) -> None:
    record, counted = logged(caplog, 200, headers=[(b"x-request-id", asked.encode())])
    name = record.fields["request_id"]
    assert (name == asked) is kept
    assert headers(counted)[b"x-request-id"].decode() == name
    assert headers(counted)[b"openai-processing-ms"].isdigit()


def test_clients_choose_no_labels(caplog: pytest.LogCaptureFixture) -> None:
    _, counted = logged(caplog, 405, method="BREW")
    assert counted.answers == [("(other)", "(none)", 405)]


def test_probes_are_logged_for_those_who_look_closer(caplog: pytest.LogCaptureFixture) -> None:
    class Route:
        path = "/healthz"

    record, counted = logged(caplog, 200, route=Route())
    assert counted.answers == [("GET", "/healthz", 200)]
    assert record.levelname == "DEBUG"
