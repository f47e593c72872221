"""One log line and one count for each request: what was asked for and how it went, without what was said."""

import logging
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ddm_rt.serve.http.metrics import Metrics

_log = logging.getLogger(__name__)

_NO_ROUTE = "(none)"  # not the path: clients choose that
_PROBES = ("/healthz", "/readyz", "/metrics")  # asked for all the time
_GONE = 499  # the client left before there was an answer
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def notes(scope: MutableMapping[str, Any]) -> dict[str, Any]:
    """What else the log line of this request says."""
    found: dict[str, Any] = scope.setdefault("state", {}).setdefault("notes", {})
    return found


class Access:
    """Around the whole application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), _GONE

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception:
            status = 500
            raise
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            method = scope["method"] if scope["method"] in _METHODS else "(other)"
            self._metrics.answered(method, route, status, seconds)
            client = scope.get("client")
            fields = {"method": method, "route": route, "status": status, "ms": round(seconds * 1000, 3)}
            fields |= {"client": client[0] if client else None, **notes(scope)}
            _log.log(logging.DEBUG if route in _PROBES else logging.INFO, "request", extra={"fields": fields})
