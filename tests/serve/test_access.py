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

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.answers.append((method, route, status))


def logged(caplog: pytest.LogCaptureFixture, status: int | None, **scope: Any) -> tuple[Any, Counted]:
    """The log record and the count of a request that is answered with `status`; None: the client leaves before.
    An application that is to answer with 500 raises.
    """

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        notes(scope)["key"] = "alice"
        if status == 500:
            raise ZeroDivisionError
        if status is not None:
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        pass

    counted = Counted()
    request = {"type": "http", "method": "GET", "path": "/secret", "client": ("192.0.2.1", 1234)} | scope
    with caplog.at_level(logging.DEBUG, "ddm_rt.serve.http.middleware"):
        asyncio.run(Access(application, counted)(request, receive, send))
    [record] = caplog.records
    return record, counted


@pytest.mark.parametrize(("status", "said"), [(200, 200), (404, 404), (None, 499)])
def test_the_status_is_the_answer_s_or_that_the_client_left(
    caplog: pytest.LogCaptureFixture, status: int | None, said: int
) -> None:
    record, counted = logged(caplog, status)
    assert counted.answers == [("GET", "(none)", said)]
    assert record.levelname == "INFO"
    fields = {name: value for name, value in record.fields.items() if name != "ms"}
    assert fields == {"method": "GET", "route": "(none)", "status": said, "client": "192.0.2.1", "key": "alice"}


def test_what_raises_is_counted_as_the_server_s_failure_and_raised(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ZeroDivisionError):
        logged(caplog, 500)
    [record] = caplog.records
    assert record.fields["status"] == 500


def test_clients_choose_no_labels(caplog: pytest.LogCaptureFixture) -> None:
    _, counted = logged(caplog, 405, method="BREW")
    assert counted.answers == [("(other)", "(none)", 405)]


def test_probes_are_logged_for_those_who_look_closer(caplog: pytest.LogCaptureFixture) -> None:
    class Route:
        path = "/healthz"

    record, counted = logged(caplog, 200, route=Route())
    assert counted.answers == [("GET", "/healthz", 200)]
    assert record.levelname == "DEBUG"
