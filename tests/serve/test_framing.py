"""How a request names its target, and requests that break: each gets one answer, and the log gets one line at most."""

import logging
import socket
from collections.abc import Iterator

import pytest
from http_server import GENERATIONS, Running, fake_pipeline, running
from patience import PATIENCE_S

from ddm_rt.serve.settings import HttpSettings


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(fake_pipeline(), http=HttpSettings(allowed_hosts=("images.example.org",))) as found:
        yield found


def talk(port: int, *sent: bytes) -> bytes:
    """All that the server answers until it closes the connection; each part is sent when the last has an answer."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        for number, part in enumerate(sent):
            if number:
                got += connection.recv(2**16)
            connection.sendall(part)
        while received := connection.recv(2**16):
            got += received
    return got


def status(port: int, target: str, host: str = "localhost") -> int:
    answer = talk(port, f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    return int(answer.split()[1])


@pytest.mark.parametrize(
    ("target", "host", "expected"),
    [
        ("http://localhost/healthz", "localhost", 200),
        ("HTTP://127.0.0.1:8000/v1/balance?scope=a", "127.0.0.1:8000", 200),
        ("https://images.example.org/healthz", "images.example.org", 200),
        ("http://localhost", "localhost", 200),  # the page
        ("http://localhost?a=b", "localhost", 200),
        # RFC 9112, 3.2.2: the target's host counts, and the Host header doesn't.
        ("http://localhost/healthz", "evil.example", 200),
        ("http://evil.example/healthz", "localhost", 421),
        ("http://user@localhost/healthz", "localhost", 421),
        ("http:///healthz", "localhost", 421),
        ("ftp://localhost/healthz", "localhost", 404),
        ("//localhost/healthz", "localhost", 404),
        ("/http://localhost/healthz", "localhost", 404),
    ],
)
def test_a_target_may_have_a_host(served: Running, target: str, host: str, expected: int) -> None:
    assert status(served.port, target, host) == expected


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the server said of connections."""
    return [record.getMessage() for record in caplog.records if record.name.startswith(("uvicorn.error", "asyncio"))]


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.2"])
def test_an_upgrade_is_passed_over_without_a_word(
    served: Running, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines = f"Host: localhost\r\nConnection: Upgrade, close\r\nUpgrade: {protocol}\r\n\r\n"
    with caplog.at_level(logging.DEBUG):
        assert talk(served.port, f"GET /healthz HTTP/1.1\r\n{lines}".encode()).startswith(b"HTTP/1.1 200 ")
    assert logged(caplog) == []


def test_a_request_that_breaks_has_one_answer(served: Running, caplog: pytest.LogCaptureFixture) -> None:
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    whole = f"{head}Content-Type: application/json\r\n\r\n"
    with caplog.at_level(logging.DEBUG):
        assert talk(served.port, whole.encode() + b"ZZ\r\n").startswith(b"HTTP/1.1 400 ")
        refused = talk(served.port, f"{head}\r\n".encode(), b"ZZ\r\n")  # it has no type
        assert refused.startswith(b"HTTP/1.1 415 ")
        assert refused.count(b"HTTP/1.1 ") == 1
        assert talk(served.port, b"\0\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert logged(caplog) == []


def test_a_body_that_comes_too_slowly_or_is_too_long_ends_the_connection() -> None:
    """Else the client could send for as long again as a head may take."""
    head = f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with running(fake_pipeline(), http=HttpSettings(body_s=0.1, head_s=2 * PATIENCE_S, max_body_bytes=10)) as server:
        assert talk(server.port, f"{head}Content-Length: 9\r\n\r\n{{".encode()).startswith(b"HTTP/1.1 408 ")
        chunk = f"{head}Transfer-Encoding: chunked\r\n\r\nff\r\n{'a' * 255}".encode()
        assert talk(server.port, chunk).startswith(b"HTTP/1.1 413 ")
