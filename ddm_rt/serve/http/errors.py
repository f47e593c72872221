"""Errors in the form that OpenAI's clients read, and which of ours becomes which of theirs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from ddm_rt.errors import BundleError, DdmError, LedgerError
from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.request import told_fields
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany

# What a request that doesn't fit complains of -> the body's field.
_FIELDS = {name: field.told.name or name for name, field in told_fields().items()}
_FIELDS |= {"height": "size", "width": "size", "deadline_s": "deadline_s"}

_LEDGER_S = 5.0  # after which a ledger may be of use again
_LONGEST, _LONGEST_NAME = 500, 100  # characters of an error


@dataclass(eq=False)
class Failure(Exception):
    """What a client is told: a status, and the four fields of OpenAI's error object."""

    status: int
    message: str
    type: str
    code: str | None = None
    param: str | None = None
    retry_after_s: float | None = None
    headers: Mapping[str, str] | None = None
    retry: bool = True  # whether OpenAI's clients may try again by themselves where the status suggests it

    def tree(self) -> dict[str, Any]:
        """A client's own words in it, such as a field's name, are no longer than a line."""
        message, param = shorten(self.message, _LONGEST), self.param and shorten(self.param, _LONGEST_NAME)
        return {"error": {"message": message, "type": self.type, "param": param, "code": self.code}}

    def response(self) -> Response:
        headers = dict(self.headers or {})
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(math.ceil(self.retry_after_s), 1))
        if not self.retry:
            headers["X-Should-Retry"] = "false"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        # Escaped, not UTF-8: a field's name may hold half a surrogate pair.
        return Response(json.dumps(self.tree()), self.status, headers, "application/json")


def shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def invalid(message: str, param: str | None = None, code: str | None = None, status: int = 400) -> Failure:
    return Failure(status, message, "invalid_request_error", code, param)


def unknown_model(name: str, names: Sequence[str]) -> Failure:
    said = f"model {name!r} does not exist; this server has {', '.join(map(repr, names))} (--model-alias adds a name)"
    return invalid(said, "model", "model_not_found", 404)


def refused(error: Exception) -> Failure:
    """What a client is told of a request that was not taken in."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, DeadlineExceeded):
        return invalid(str(error), "deadline_s", "deadline_too_short")
    if isinstance(error, QueueFull):
        code = "too_many_requests" if isinstance(error, TooMany) else "queue_full"
        return Failure(429, str(error), "rate_limit_error", code, retry_after_s=error.retry_after_s)
    if isinstance(error, Draining):
        return Failure(503, str(error), "server_error", "draining", retry_after_s=1.0)
    if isinstance(error, LedgerError):
        return unavailable()
    if isinstance(error, DdmError) and not isinstance(error, BundleError):
        return invalid(str(error), _FIELDS.get(str(error).partition(" ")[0]), "invalid_value")
    return broken()


def failed(error: Exception) -> Failure:
    """What a client is told of a request that was taken in, and came to nothing."""
    if isinstance(error, DeadlineExceeded):
        return Failure(504, str(error), "server_error", "deadline_exceeded", retry=False)
    if isinstance(error, Draining | LedgerError):
        return refused(error)
    if isinstance(error, Cancelled):
        return Failure(499, "the request was cancelled", "invalid_request_error", "cancelled", retry=False)
    return broken()


def unavailable() -> Failure:
    """What a client is told where the ledger can't be used: nothing was drawn for it, or what was is given back."""
    message = "the ledger that keeps the balance can't be used now; the server's log says why"
    return Failure(503, message, "server_error", "ledger_unavailable", retry_after_s=_LEDGER_S)


def broken() -> Failure:
    """What a client is told of an error inside: that the log has it, and no more."""
    return Failure(500, "the server failed at this request; its log says why", "server_error", retry=False)


def malformed(error: RequestValidationError) -> Failure:
    """What a client is told of a body that doesn't fit: its first wrong field, and not what stood there."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"][1:])  # without "body" or "query"
    if first["type"] == "json_invalid":
        return invalid("the body is not JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return invalid(f"{place}: unknown field", place, "unknown_parameter")
    return invalid(f"{place or 'the body'}: {first['msg']}", place or None, "invalid_value")


def failure_of(error: Exception) -> Failure:
    """What a client is told of an error that ended a call: ours, a malformed request, the web framework's, or any."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, RequestValidationError):
        return malformed(error)
    if isinstance(error, HTTPException):  # no such path or method, a body that is too long or unreadable
        code = {400: "invalid_json", 404: "not_found", 405: "method_not_allowed", 413: "body_too_large"}.get(
            error.status_code
        )
        return Failure(error.status_code, error.detail, "invalid_request_error", code, headers=error.headers)
    return broken()
