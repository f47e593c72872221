"""Many connections at once that cost the server more than the attacker; each holds for some seconds."""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult

HEAD_S = 10.0  # what the server gives a head or a body, by default
SLACK_S = 5.0
_SMALL = 4096  # bytes that the system keeps for a reader


class Flood(NamedTuple):
    name: str
    connections: int
    first: bytes  # what each connection sends
    again: bytes = b""  # what it sends each second after that
    reads: bool = True
    cut: bool = False  # the server must have ended all of them


def floods(host: str, key: str | None) -> list[Flood]:
    permit = "" if key is None else f"Authorization: Bearer {key}\r\n"
    lines = f"Host: {host}\r\n{permit}Content-Type: application/json\r\n"
    post = f"POST /v1/images/generations HTTP/1.1\r\n{lines}"
    body = json.dumps({"n": 16, "steps": 1, "stream": True}).encode()
    whole = f"{post}Content-Length: {len(body)}\r\n\r\n".encode() + body
    one = f"GET /healthz HTTP/1.1\r\n{lines}\r\n".encode()
    return [
        Flood("slow heads", 200, b"GET /healthz HTTP/1.1\r\n", b"X: y\r\n", cut=True),
        Flood("slow bodies", 200, f"{post}Content-Length: 100000\r\n\r\n".encode(), b" ", cut=True),
        Flood("slow chunks", 200, f"{post}Transfer-Encoding: chunked\r\n\r\n".encode(), b"1\r\n \r\n", cut=True),
        Flood("idle connections over the limit", 1100, b"", cut=True),
        Flood("slow bodies over the limit", 1100, f"{post}Content-Length: 100000\r\n\r\n".encode(), b" ", cut=True),
        Flood("readers that do not read", 50, whole, reads=False),
        Flood("200 requests without waiting", 100, 200 * one, cut=True),
        Flood("heads of 60 kB that do not end", 100, b"GET / HTTP/1.1\r\nX: " + 60_000 * b"a", b"a", cut=True),
    ]


def hold(server: SplitResult, flood: Flood, seconds: float, meanwhile: Callable[[], object]) -> tuple[str, bool]:
    """Hold the flood, calling `meanwhile` again and again. Returns in words how many connections the server ended,
    and whether those are as many as it must end.
    """
    assert server.hostname is not None
    watched, ended = selectors.DefaultSelector(), 0
    with contextlib.ExitStack() as stack:
        opened: set[socket.socket] = set()

        def end(connection: socket.socket) -> None:
            nonlocal ended
            if connection in opened:
                opened.remove(connection)
                if flood.reads:
                    watched.unregister(connection)
                ended += 1

        for _ in range(flood.connections):
            connection = stack.enter_context(socket.socket())
            if not flood.reads:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
            connection.settimeout(SLACK_S)
            connection.connect((server.hostname, server.port or 80))
            opened.add(connection)
            if flood.reads:
                watched.register(connection, selectors.EVENT_READ)
            _send(connection, flood.first, end)
            connection.setblocking(False)
        start = time.monotonic()
        while opened and time.monotonic() - start < seconds:
            second = time.monotonic() + 1.0
            while time.monotonic() < second and opened:
                meanwhile()
                for ready, _ in watched.select(0.02):
                    _receive(ready.fileobj, end)  # type: ignore[arg-type]
            for connection in list(opened) if flood.again else ():
                _send(connection, flood.again, end)
        told = f"{ended:,} of {flood.connections:,} connections ended"
        return told, ended == flood.connections or not flood.cut or seconds < HEAD_S + SLACK_S


def _send(connection: socket.socket, content: bytes, end: Callable[[socket.socket], None]) -> None:
    try:
        if content:
            connection.sendall(content)
    except BlockingIOError:
        pass
    except OSError:
        end(connection)


def _receive(connection: socket.socket, end: Callable[[socket.socket], None]) -> None:
    try:
        if not connection.recv(2**16):
            end(connection)
    except BlockingIOError:
        pass
    except OSError:
        end(connection)
