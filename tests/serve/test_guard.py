"""What is refused before a request's body is read, and connections that may not crowd out health checks."""

import hashlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gated_engine import GatedEngine
from http_server import GENERATIONS, Running, client_of, fake_pipeline, running, stopped_pipeline
from patience import PATIENCE_S, settled
from pydantic import ValidationError

from ddm_rt.serve.http import server as server_module
from ddm_rt.serve.http.keys import Caller, Keys
from ddm_rt.serve.http.middleware import request_id
from ddm_rt.serve.http.server import JsonLines
from ddm_rt.serve.settings import HttpSettings

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def served() -> Iterator[Running]:
    with running(fake_pipeline()) as found:
        yield found


def told(response: Any) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def asked(host: str, **settings: Any) -> int:
    with client_of(fake_pipeline(), http=HttpSettings(**settings)) as client:
        return client.get("/healthz", headers={"Host": host}).status_code


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "app.localhost", "127.0.0.1:80", "10.1.2.3", "[::1]:8000", "[::1]", "localhost."],
)
def test_addresses_and_this_machine_s_names_are_answered(host: str) -> None:
    assert asked(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:80", "", "x:y:z", "127.0.0.1.."),
        *("127.0.0.1:x@evil.com", 'localhost:"><script>', "127.0.0.1%.evil.com", "[::1", "[fe80::1%eth0/@evil.com]"),
    ],
)
def test_another_name_is_refused(host: str) -> None:
    assert asked(host) == 421


def test_names_of_the_server_are_answered() -> None:
    assert asked("images.example", allowed_hosts=("Images.example",)) == 200
    assert asked("images.example:443", public_url="https://images.example/here") == 200
    assert asked("any.example", allowed_hosts=("*",)) == 200
    assert asked("other.example", allowed_hosts=("images.example",)) == 421


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_a_page_of_another_site_cannot_send_a_body(kind: str | None) -> None:
    """Those are the types that a browser sends without asking first whether it may."""
    with client_of(fake_pipeline()) as client:
        headers = {} if kind is None else {"Content-Type": kind}
        found = client.post(GENERATIONS, content=b'{"n": 1}', headers=headers)
        assert told(found) == (415, "unsupported_media_type")
        assert client.get("/v1/balance").json()["data"] == []


@pytest.mark.parametrize("kind", ["application/json", "Application/JSON; charset=utf-8", "application/vnd.x+json"])
def test_json_is_taken(kind: str) -> None:
    with client_of(fake_pipeline()) as client:
        assert client.post(GENERATIONS, content=b'{"n": 1}', headers={"Content-Type": kind}).status_code == 200


def talk(port: int, sent: bytes) -> bytes:
    """All that the server answers until it closes the connection."""
    got = b""
    with socket.create_connection(("127.0.0.1", port), PATIENCE_S) as connection:
        connection.sendall(sent)
        while part := connection.recv(2**16):
            got += part
    return got


def head(*lines: str, path: str = GENERATIONS) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *lines, "", ""]).encode()


def test_keys_come_before_bodies() -> None:
    """No byte of the body is sent, and the answer is there."""
    keys = Keys([(hashlib.sha256(KEY.encode()).digest(), Caller("alice"))])
    with running(fake_pipeline(), keys=keys) as server:
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
            connection.sendall(head("Content-Type: application/json", "Content-Length: 100"))
            assert connection.recv(2**16).startswith(b"HTTP/1.1 401 ")
        with server.client() as client:
            assert told(client.get("/v1/models")) == (401, "invalid_api_key")
            assert told(client.get("/v1/nothing")) == (401, "invalid_api_key")
            assert client.get("/v1/models", headers={"Authorization": f"bearer {KEY}"}).status_code == 200
            assert client.get("/v1/models", headers={"Authorization": f"Basic {KEY}"}).status_code == 401
            assert client.get("/healthz").status_code == 200


def test_two_lengths_of_one_body_end_the_connection(served: Running) -> None:
    lines = ("Content-Type: application/json", "Content-Length: 4", "Transfer-Encoding: chunked")
    answer = talk(served.port, head(*lines) + b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"invalid_framing" in answer


def test_a_body_that_is_too_long_is_not_asked_for(served: Running) -> None:
    lines = ("Content-Type: application/json", "Content-Length: 1000000000", "Expect: 100-continue")
    answer = talk(served.port, head(*lines))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


@pytest.fixture
def client() -> Iterator[TestClient]:
    with client_of(fake_pipeline()) as client:
        yield client


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/metrics", "/v1/models", "/v1/balance"])
def test_head_is_get_without_a_body(served: Running, path: str) -> None:
    with served.client() as client:
        there, answer = client.get(path), client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"] == there.headers["content-type"]
        assert client.get("/healthz").status_code == 200, "the connection goes on"


def test_options_say_what_there_is(client: TestClient) -> None:
    answer = client.options(GENERATIONS)
    assert (answer.status_code, answer.headers["allow"]) == (204, "GET, HEAD, POST, OPTIONS")


@pytest.mark.parametrize("path", ["edits", "variations"])
def test_what_openai_has_and_this_server_has_not_is_called_unsupported(client: TestClient, path: str) -> None:
    answer = client.post(f"/v1/images/{path}", files={"image": b"x"})
    assert told(answer) == (404, "unsupported")


@pytest.mark.parametrize("body", [b"\xff", b"{", b'{"n": 1', b"\x00"])
def test_a_body_that_is_no_json_is_called_so(client: TestClient, body: bytes) -> None:
    answer = client.post(GENERATIONS, content=body, headers={"Content-Type": "application/json"})
    assert told(answer) == (400, "invalid_json")


def test_an_error_is_not_as_long_as_what_was_sent(client: TestClient) -> None:
    answer = client.post(GENERATIONS, json={"x" * 100_000: 1})
    assert told(answer) == (400, "unknown_parameter")
    assert len(answer.content) < 1000


def test_idle_connections_do_not_crowd_out_health_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_CONNECTIONS", 8)
    with running(fake_pipeline()) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) for _ in range(20)]
        try:
            with server.client() as client:
                assert client.get("/healthz").status_code == 200
            assert settled(lambda: len(server.server.server_state.connections) <= 8)
            assert idle[0].recv(1) == b"", "the one that has been idle for longest was closed"
        except ConnectionResetError:
            pass  # closed too
        finally:
            for connection in idle:
                connection.close()


def test_a_connection_with_a_request_is_not_closed_for_others(
    engine: GatedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_CONNECTIONS", 4)
    answers: list[int] = []
    with running(stopped_pipeline(engine)) as server:

        def ask() -> None:
            with server.client() as client:
                answers.append(client.post(GENERATIONS, json={"n": 1}).status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        server.wait_for(occupied=1)
        idle = [socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) for _ in range(10)]
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
        engine.go.set()
        thread.join(PATIENCE_S)
        for connection in idle:
            connection.close()
    assert answers == [200]


def test_requests_over_the_limit_are_refused_and_health_checks_are_not(engine: GatedEngine) -> None:
    with running(stopped_pipeline(engine), http=HttpSettings(max_requests=1)) as server:
        thread = threading.Thread(target=server.client().post, args=(GENERATIONS,), kwargs={"json": {}})
        thread.start()
        server.wait_for(occupied=1)
        with server.client() as client:
            refused = client.get("/v1/models")
            assert told(refused) == (503, "overloaded")
            assert refused.headers["retry-after"] == "1"
            assert client.get("/healthz").status_code == client.get("/metrics").status_code == 200
        engine.go.set()
        thread.join(PATIENCE_S)


def test_a_failure_is_logged_with_its_request_s_id() -> None:
    name = request_id.set("req_7")
    try:
        line = json.loads(JsonLines().format(logging.makeLogRecord({"msg": "a request failed"})))
    finally:
        request_id.reset(name)
    assert line["request_id"] == "req_7"


def test_slow_bodies_do_not_crowd_out_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "_CONNECTIONS", 8)
    with running(fake_pipeline()) as server:
        slow = [socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) for _ in range(8)]
        for connection in slow:
            connection.sendall(head("Content-Type: application/json", "Content-Length: 20") + b"{")
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
            assert client.post(GENERATIONS, json={}).status_code == 200
        for connection in slow:
            connection.close()


def test_who_sends_requests_without_waiting_gets_one_answer(served: Running) -> None:
    one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = talk(served.port, 50 * one)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answer.lower()


def test_a_body_of_many_fields_is_refused_at_once(client: TestClient) -> None:
    answer = client.post(GENERATIONS, json={str(number): 1 for number in range(101)})
    assert told(answer) == (400, "invalid_value")
    assert "101 fields; expected 100 at most" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "settings",
    [
        {"allowed_hosts": ("gw.example:8000",)},
        {"allowed_hosts": ("https://gw.example",)},
        {"allowed_hosts": ("*.example.com",)},
        {"origins": ("good.example",)},
        {"origins": ("https://x.example/",)},
        {"public_url": "img.example"},
        {"public_url": "javascript:alert(1)"},
    ],
    ids=str,
)
def test_settings_that_could_never_fit_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="; expected "):
        HttpSettings(**settings)


def test_pictures_of_a_client_that_has_left_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    go, begun = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> bytes:
        made.append(1)
        begun.set()
        assert go.wait(PATIENCE_S)
        return b"x"

    monkeypatch.setattr("ddm_rt.serve.http.generations.picture", slow)
    with running(fake_pipeline(), http=HttpSettings(resize=True)) as server:
        body = json.dumps({"n": 9, "steps": 1, "size": "64x64"}).encode()
        with socket.create_connection(("127.0.0.1", server.port), PATIENCE_S) as connection:
            connection.sendall(head("Content-Type: application/json", f"Content-Length: {len(body)}") + body)
            assert begun.wait(PATIENCE_S)
        assert settled(lambda: len(server.server.server_state.connections) == 0)
        go.set()
        with server.client() as client:
            assert client.get("/healthz").status_code == 200
    assert len(made) < 9


def test_scaled_pictures_have_only_so_many_pixels() -> None:
    with client_of(fake_pipeline(), http=HttpSettings(resize=True)) as client:
        answer = client.post(GENERATIONS, json={"n": 5, "size": "2048x2048"})
        assert told(answer) == (400, "invalid_value")
        assert answer.json()["error"]["param"] == "size"
