"""Runs an application on a socket, to an end that lets requests under way finish; and logs as JSON lines."""

import asyncio
import json
import logging
import math
import resource
import socket
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from types import FrameType
from typing import Any, TextIO

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.flow_control import CLOSE_HEADER
from uvicorn.protocols.http.h11_impl import H11Protocol

from ddm_rt.errors import DdmError
from ddm_rt.serve.http.middleware import request_id
from ddm_rt.serve.scheduling.service import Service
from ddm_rt.serve.settings import HttpSettings

# Of connections: errors alone. uvicorn warns of each `Upgrade` and each broken request, and clients choose how many.
_connection_log = logging.getLogger("uvicorn.error.connections")
_connection_log.setLevel(logging.ERROR)

_CONNECTIONS = 1024  # open at once; the one that has been idle for longest makes room for another
_OTHER_FILES = 256  # that the process has open besides


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises DdmError where there can't be one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Not socket.create_server: it names no protocol, and asyncio turns Nagle's delays off only where it is TCP.
        place = socket.socket(family, kind, protocol)
        try:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)
            place.listen(1024)
        except OSError:
            place.close()
            raise
    except OSError as error:
        raise DdmError(f"{host} port {port}: {error.strerror}; --host and --port name another place") from error
    return place


class Server(uvicorn.Server):
    """Answers requests in `run([socket])`, until SIGTERM or SIGINT."""

    def __init__(
        self, app: FastAPI, scheduler: Service[Any], http: HttpSettings, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        """`on_ready` is called when requests are answered."""

        super().__init__(
            uvicorn.Config(
                app,
                http=type("Protocol", (_Protocol,), {"http": http, "idle": {}, "most": _room_for_connections()}),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=math.ceil(http.write_s),
            )
        )
        self._scheduler, self._on_ready = scheduler, on_ready
        self._stopping: threading.Thread | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come, and `run` is going to return, after what was taken in is finished, or has failed because
        it takes too long. Meanwhile health checks are answered, and new requests with 503. A second signal ends all.
        """
        if self._stopping is None:
            self._stopping = threading.Thread(target=self._stop, name="stopping", daemon=True)
            self._stopping.start()
        else:
            self.should_exit = self.force_exit = True

    def _stop(self) -> None:
        try:
            self._scheduler.drain()
            self._scheduler.close()
        finally:
            self.should_exit = True


class _Protocol(H11Protocol):
    """HTTP/1.1 that doesn't wait for ever: not for the head of a request, nor for a client that doesn't read. Where
    there are too many connections, those close first that wait for a request.
    """

    http: HttpSettings
    idle: dict["_Protocol", None]  # the server's connections without a whole request, the longest so first
    most: int  # connections
    _head: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.logger = _connection_log
        super().connection_made(transport)
        self._wait_for_head()
        while len(self.connections) > self.most and self.idle:
            oldest = next(iter(self.idle))  # itself only where all others have a request that has come whole
            del self.idle[oldest]
            self.connections.discard(oldest)
            oldest.transport.abort()

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return  # who sends a body slowly is as idle as who sends no request
        self.idle.pop(self, None)
        if self.conn.trailing_data[0]:
            # Who sends requests without waiting for answers would keep the loop from others: this one is the last.
            self.cycle.keep_alive = False
            self.headers.append(CLOSE_HEADER)  # uvicorn answers with what the client said of the connection

    def send_400_response(self, msg: str) -> None:
        """To a broken request. One that breaks after it was refused has its answer already."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._wait_for_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(self.http.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        _cancel(self._unread)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.idle.pop(self, None)
        _cancel(self._head)
        _cancel(self._unread)

    def _wait_for_head(self) -> None:
        _cancel(self._head)
        self._head = self.loop.call_later(self.http.head_s, self._give_up)
        self.idle.pop(self, None)
        if self.cycle is None or self.cycle.response_complete:
            self.idle[self] = None

    def _give_up(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()
            # What is left of the last response may still be read.
            self._head = self.loop.call_later(self.http.write_s, self.transport.abort)


def _room_for_connections() -> int:
    """How many there may be. The process asks for as many open files, where it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _CONNECTIONS + _OTHER_FILES
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(min(_CONNECTIONS, soft - _OTHER_FILES), 1)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


class JsonLines(logging.Formatter):
    """A record's time, level, logger and message, its `fields` (`extra={"fields": {...}}`), and its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if name := request_id.get():
            line.setdefault("request_id", name)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def log_to(stream: TextIO, level: str) -> None:
    """Everything that this process logs, at `level` ("debug", "info", "warning" or "error") and above."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for name in ("ddm_rt", "uvicorn"):
        logging.getLogger(name).setLevel(level.upper())
