"""What clients are told of errors, apart from any server."""

import json

import pytest

from ddm_rt.errors import DdmError
from ddm_rt.sample.generation import Cancelled
from ddm_rt.serve.http.errors import failed, refused
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull

# An error, its status, and whether OpenAI's clients may try again by themselves.
REFUSALS = [
    (QueueFull("full", 2.5), 429, True),
    (Draining("stopping"), 503, True),
    (DdmError("n is 0; expected at least 1"), 400, True),
    (ValueError("inside"), 500, False),
]
FAILURES = [
    (DeadlineExceeded("late"), 504, False),
    (Cancelled(), 499, False),
    (Draining("stopping"), 503, True),
    (ValueError("inside"), 500, False),
]


@pytest.mark.parametrize(
    ("told", "error", "status", "again"),
    [(refused, *case) for case in REFUSALS] + [(failed, *case) for case in FAILURES],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_clients_are_told_whether_to_try_again(told, error: Exception, status: int, again: bool) -> None:
    answer = told(error).response()
    assert answer.status_code == status
    assert ("x-should-retry" in answer.headers) is not again
    assert "inside" not in json.loads(answer.body)["error"]["message"]


def test_seconds_to_wait_are_whole_and_at_least_one() -> None:
    assert refused(QueueFull("full", 2.5)).response().headers["retry-after"] == "3"
    assert refused(QueueFull("full", 0.0)).response().headers["retry-after"] == "1"
