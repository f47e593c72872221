"""Requests that servers in a row may read in two ways, and what may come back. Each is sent on a connection that stays
open, so that a request hidden in it would be answered too.
"""

import re
import socket
from typing import NamedTuple
from urllib.parse import SplitResult

QUIET_S = 0.4  # without a byte: nothing more comes
MOST_S = 15.0
_IMAGES = "POST /v1/images/generations"
_BODY = b'{"steps":1}'
_HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: localhost\r\n\r\n"
REFUSED = frozenset({400, 404, 405, 408, 413, 415, 421, 431, 501, 505})
FINE = REFUSED | {200}


class Framed(NamedTuple):
    name: str
    sent: bytes
    allowed: frozenset[int]  # statuses; a connection closed without an answer is a refusal


def framed(host: str, key: str | None) -> list[Framed]:
    """`host` is how the server may be called."""
    permit = "" if key is None else f"Authorization: Bearer {key}\r\n"
    lines = f"Host: {host}\r\n{permit}"

    def post(framing: str, body: bytes) -> bytes:
        return f"{_IMAGES} HTTP/1.1\r\n{lines}Content-Type: application/json\r\n{framing}\r\n".encode() + body

    def get(target: str = "/healthz", more: str = "", version: str = "HTTP/1.1") -> bytes:
        return f"GET {target} {version}\r\n{lines}{more}\r\n".encode()

    length, chunked = f"Content-Length: {len(_BODY)}\r\n", "Transfer-Encoding: chunked\r\n"
    chunk = b"%x\r\n%s\r\n0\r\n\r\n" % (len(_BODY), _BODY)
    hidden = b"0\r\n\r\n" + _HIDDEN
    fine, refused = FINE, REFUSED
    return [
        Framed("CL and TE", post(f"Content-Length: {len(hidden)}\r\n{chunked}", hidden), refused),
        Framed("TE and CL", post(f"{chunked}Content-Length: 4\r\n", hidden), refused),
        Framed("two lengths", post(f"{length}Content-Length: 0\r\n", _BODY), refused),
        Framed("a list of lengths", post(f"Content-Length: {len(_BODY)}, 0\r\n", _BODY), refused),
        Framed("the same length twice", post(length + length, _BODY), fine),
        *(
            Framed(f"length {text[:9]}", post(f"Content-Length: {text}\r\n", _BODY), refused)
            for text in ("+11", "-11", "0xb", "1 1", "1_1", "11;", "9" * 5000)
        ),
        *(
            Framed(f"TE {text!r}", post(f"Transfer-Encoding: {text}\r\n", hidden), refused)
            for text in ("xchunked", "chunked, identity", "identity", '"chunked"', "chunked;x", "\x0bchunked", "gzip")
        ),
        Framed("TE twice", post(f"{chunked}Transfer-Encoding: identity\r\n", hidden), refused),
        Framed("a space before TE's colon", post("Transfer-Encoding : chunked\r\n", hidden), refused),
        Framed("TE in a folded line", post("X: y\r\n Transfer-Encoding: chunked\r\n" + length, _BODY), fine),
        Framed("a folded TE", post("Transfer-Encoding:\r\n chunked\r\n", chunk), fine),
        Framed("TE after a bare CR", post(f"X: y\rTransfer-Encoding: chunked\r\n{length}", _BODY), refused),
        Framed("lines that end in LF", post(length, _BODY).replace(b"\r\n", b"\n"), fine),
        Framed("a NUL in a line", post(f"X: \0\r\n{length}", _BODY), refused),
        Framed("chunk with extension", post(chunked, chunk.replace(b"\r\n", b";a=b\r\n", 1)), fine),
        Framed("extension of 1 MB", post(chunked, b"b;" + b"a" * 2**20 + b"\r\n" + _BODY), refused),
        Framed("extension that ends in LF", post(chunked, b"b;\n" + _BODY + b"\r\n" + hidden), refused),
        Framed("chunk of a negative size", post(chunked, b"-b\r\n" + _BODY + b"\r\n" + hidden), refused),
        Framed("chunk of 20 digits", post(chunked, b"f" * 20 + b"\r\n" + _BODY), refused),
        Framed("chunk that is too short", post(chunked, b"2\r\n" + _BODY + b"\r\n" + hidden), refused),
        Framed("a trailer with a length", post(chunked, chunk[:-2] + b"Content-Length: 99\r\n\r\n"), fine),
        Framed("a body after GET", get(more=f"Content-Length: {len(_HIDDEN)}\r\n") + _HIDDEN, fine),
        Framed("1 GB expected", post("Content-Length: 1000000000\r\nExpect: 100-continue\r\n", b""), refused),
        Framed("target with the host", get(f"http://{host}/healthz"), frozenset({200})),
        Framed("target with another host", get("http://evil.example/healthz"), frozenset({421})),
        Framed("another host", b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\n\r\n", frozenset({421})),
        Framed("two hosts", get(more="Host: evil.example\r\n"), refused),
        Framed("no host", b"GET /healthz HTTP/1.1\r\n\r\n", refused),
        Framed("HTTP/0.9", b"GET /healthz\r\n\r\n", refused),
        Framed("HTTP/2's preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", refused),
        Framed("HTTP/1.1 and more", get(version="HTTP/1.1 x"), refused),
        Framed("Upgrade: websocket", get(more="Connection: Upgrade\r\nUpgrade: websocket\r\n"), fine),
        Framed("Upgrade: h2c", get(more="Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"), fine),
        Framed("CONNECT", f"CONNECT evil.example:443 HTTP/1.1\r\n{lines}\r\n".encode(), refused),
        Framed("TRACE", f"TRACE / HTTP/1.1\r\n{lines}\r\n".encode(), refused),
        Framed("a path upwards", get("/../../etc/passwd"), refused),
        Framed("a target of 1 MB", get("/" + "a" * 2**20), refused),
        Framed("a line of 1 MB", get(more=f"X: {'a' * 2**20}\r\n"), refused),
        Framed("50,000 lines", get(more="X: y\r\n" * 50_000), refused),
    ]


def ask(server: SplitResult, attack: Framed) -> tuple[str, bool]:
    """What came back, in words, and whether that is one answer which is allowed."""
    got, closed = b"", False
    assert server.hostname is not None
    with socket.create_connection((server.hostname, server.port or 80), timeout=MOST_S) as connection:
        try:
            connection.sendall(attack.sent)
            while not closed:
                part = connection.recv(2**16)
                got, closed = got + part, not part
                connection.settimeout(QUIET_S)
        except TimeoutError:
            pass
        except ConnectionError:
            closed = True
    found = [int(status) for status in re.findall(rb"^HTTP/1\.[01] (\d{3}) ", got, re.MULTILINE)]
    final = [status for status in found if status != 100]
    told = ", ".join(map(str, found)) or ("no answer" if closed else "silence")
    held = len(final) <= 1 and all(status in attack.allowed for status in final) and 101 not in found
    if not final:
        held = closed and attack.allowed >= REFUSED
    return f"{told}{', closed' if closed else ''}", held
