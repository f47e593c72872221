"""Around the application: a log line and a count for each request, and bounds on what a client may send, and when."""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import MutableMapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddm_rt.serve.http.errors import Failure, broken
from ddm_rt.serve.http.metrics import Metrics
from ddm_rt.serve.settings import HttpSettings

_log = logging.getLogger(__name__)

# Of the request that is answered here, for whoever logs meanwhile; empty outside of requests.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_ABSOLUTE = re.compile(rb"https?://([^/?]*)(/.*)?", re.IGNORECASE | re.DOTALL)  # a target with a host
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")  # a client's own, where it is no more than that
NO_ROUTE = "(none)"  # not the path: clients choose that
PROBES = ("/healthz", "/readyz", "/metrics")  # asked for all the time
GONE = 499  # the client left before there was an answer
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
CLOSE = {"Connection": "close"}  # what follows on the connection can't be trusted, or is too long to be read
_PART = 2**16  # bytes of a response


def notes(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """What else the log line of this request says."""
    found: dict[str, Any] = scope.setdefault("state", {}).setdefault("notes", {})
    return found


def to_origin_form(scope: MutableMapping[str, Any]) -> None:
    """Turn the target `http://HOST/PATH` into `/PATH`. Its host then stands for the Host header's (RFC 9112, 3.2.2)."""
    if found := _ABSOLUTE.fullmatch(scope.get("raw_path") or b""):
        host, path = found[1], found[2] or b"/"
        others = [header for header in scope["headers"] if header[0] != b"host"]
        scope["raw_path"], scope["path"] = path, unquote(path.decode("ascii"))
        scope["headers"] = [(b"host", host), *others]


def method_of(scope: Scope) -> str:
    """Of a request. Clients choose it, so what HTTP doesn't know is one for all."""
    method: str = scope["method"]
    return method if method in _METHODS else "(other)"


class Access:
    """Logs and counts each request: what was asked for and how it went, without what was said. Each response has the
    request's id, which the log has too, and the time that passed before it.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        to_origin_form(scope)
        started, status = time.perf_counter(), GONE
        method = method_of(scope)
        told = Headers(raw=scope.get("headers", [])).get("x-request-id", "")
        name = told if _REQUEST_ID.fullmatch(told) else f"req_{secrets.token_hex(16)}"
        request_id.set(name)

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(raw=message["headers"])
                headers["x-request-id"] = name
                headers["openai-processing-ms"] = str(round((time.perf_counter() - started) * 1000))
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            if status != GONE:
                raise
            _log.exception("a request failed")
            await broken().response()(scope, receive, noting)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", NO_ROUTE)
            self._metrics.answered(method, route, status, seconds)
            client = scope.get("client")
            fields = {"request_id": name, "method": method, "route": route, "status": status}
            fields["ms"] = round(seconds * 1000, 3)
            fields |= {"client": client[0] if client else None, **notes(scope)}
            _log.log(logging.DEBUG if route in PROBES else logging.INFO, "request", extra={"fields": fields})


class Limits:
    """Bounds how many requests are under way and how long their bodies are, and sends responses in parts. A body that
    is too long, or comes too slowly, raises HTTPException (413, 408) in the application that reads it.
    """

    def __init__(self, app: ASGIApp, http: HttpSettings) -> None:
        self._app, self._http = app, http
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._under_way >= self._http.max_requests and scope["path"] not in PROBES:
            full = Failure(503, "too many requests are under way", "server_error", "overloaded", retry_after_s=1.0)
            await full.response()(scope, receive, send)
            return
        self._under_way += 1
        try:
            await self._bounded(scope, receive, send)
        finally:
            self._under_way -= 1

    async def _bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
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
                raise HTTPException(408, f"the body has not arrived within {body_s:g} s", CLOSE) from None
            complete = not message.get("more_body", False)
            got += len(message.get("body", b""))
            if got > most:
                raise HTTPException(413, f"the body is longer than {most} bytes", CLOSE)
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
