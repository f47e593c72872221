"""Runs an application on a socket, to an end that lets requests under way finish."""

import asyncio
import math
import socket
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddm_rt.errors import DdmError
from ddm_rt.serve.http_settings import HttpSettings
from ddm_rt.serve.scheduler import Scheduler


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises DdmError where there can't be one."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        raise DdmError(f"{host} port {port}: {error.strerror}; --host and --port name another place") from error


def serve(
    app: FastAPI, scheduler: Scheduler, http: HttpSettings, place: socket.socket, on_ready: Callable[[], None]
) -> None:
    """Answers until SIGTERM or SIGINT: then nothing more is taken in, what was taken in is finished, and it returns.

    A second signal ends it at once. `on_ready` is called when requests are answered.
    """

    class Protocol(_Protocol):
        head_s = http.head_s

    config = uvicorn.Config(
        app,
        http=Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=http.connections,
        timeout_graceful_shutdown=math.ceil(http.write_s),
    )
    _Server(config, scheduler, on_ready).run([place])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, scheduler: Scheduler, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._scheduler, self._on_ready = scheduler, on_ready
        self._draining: threading.Thread | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal only drains: health checks are answered meanwhile, and new requests with 503."""
        if self._draining is None:
            self._draining = threading.Thread(target=self._drain, name="draining", daemon=True)
            self._draining.start()
        else:
            self.should_exit = self.force_exit = True

    def _drain(self) -> None:
        try:
            self._scheduler.drain()
            self._scheduler.close()
        finally:
            self.should_exit = True


class _Protocol(H11Protocol):
    """HTTP/1.1 that waits so long, and no longer, for the head of a request."""

    head_s: float
    _due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._due is not None:
            self._due.cancel()

    def _wait(self) -> None:
        if self._due is not None:
            self._due.cancel()
        self._due = self.loop.call_later(self.head_s, self._give_up)

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
