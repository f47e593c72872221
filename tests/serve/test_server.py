"""A real server on a loopback port: clients that leave or dawdle, and a graceful end."""

import base64
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import httpx2
import numpy as np
import pytest
from fake_engine import FakeEngine
from gated_engine import GatedEngine
from http_server import GENERATIONS, Running, fake_pipeline, running, stopped_pipeline
from patience import PATIENCE_S, settled
from PIL import Image

from ddm_rt.errors import DdmError
from ddm_rt.serve.http.server import listen
from ddm_rt.serve.settings import HttpSettings, ServeSettings


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(fake_pipeline(), http=HttpSettings()) as server:
        yield server


def test_who_finds_the_queue_full_is_told_when_to_come_again(engine: GatedEngine) -> None:
    with running(stopped_pipeline(engine), ServeSettings(slots=1, queue=1)) as server:
        for taken in ({"occupied": 1}, {"requests": 2}):  # the first is in the slot before the second waits
            threading.Thread(target=server.client().post, args=(GENERATIONS,), kwargs={"json": {}}).start()
            server.wait_for(**taken)
        response = server.client().post(GENERATIONS, json={})
        assert response.status_code == 429
        assert int(response.headers["retry-after"]) >= 1
        assert response.json()["error"]["code"] == "queue_full"
        engine.go.set()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_request(stream: bool, engine: GatedEngine) -> None:
    with running(stopped_pipeline(engine, 3)) as server:
        body = json.dumps({"n": 4, "steps": 200, "stream": stream}).encode()
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(_head(len(body)) + body)
            server.wait_for(occupied=4)
            assert engine.reached.wait(PATIENCE_S)
        server.wait_for(cancelled=1)
        engine.go.set()
        server.wait_for(requests=0, occupied=0)
        assert len(engine.sizes) == 4  # calls, of the 200 that its steps take: no more than the one under way
        [balance] = server.client().get("/v1/balance").json()["data"]
        assert (balance["assigned"]["in_progress"], balance["assigned"]["pooled"]) == (0, 4)


def test_being_told_to_stop_finishes_what_was_taken_in_and_takes_nothing_more(engine: GatedEngine) -> None:
    with running(stopped_pipeline(engine)) as server, server.client() as client:
        replies: list[httpx2.Response] = []
        asking = threading.Thread(
            target=lambda: replies.append(server.client().post(GENERATIONS, json={"n": 2, "steps": 100}))
        )
        asking.start()
        server.wait_for(occupied=2)
        server.stop()
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200
        refused = client.post(GENERATIONS, json={})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        engine.go.set()
        asking.join(PATIENCE_S)
        server.thread.join(PATIENCE_S)
        assert not server.thread.is_alive()
        assert replies[0].status_code == 200
        assert len(replies[0].json()["data"]) == 2
        with pytest.raises(httpx2.ConnectError):
            server.client().get("/healthz")


def test_what_takes_too_long_at_the_end_is_told_so(engine: GatedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(stopped_pipeline(engine), ServeSettings(drain_s=0.1)) as server:
        replies: list[httpx2.Response] = []
        asking = threading.Thread(target=lambda: replies.append(server.client().post(GENERATIONS, json={"steps": 200})))
        asking.start()
        server.wait_for(occupied=1)
        closing = threading.Event()
        monkeypatch.setattr(server.scheduler, "close", lambda close=server.scheduler.close: (closing.set(), close()))
        server.stop()
        assert closing.wait(PATIENCE_S)  # without waiting for the engine any longer
        engine.go.set()
        asking.join(PATIENCE_S)
        assert (replies[0].status_code, replies[0].json()["error"]["code"]) == (503, "draining")


def test_a_second_signal_ends_at_once(engine: GatedEngine) -> None:
    with running(stopped_pipeline(engine)) as server, server.client() as client:
        threading.Thread(target=_post_and_forget, args=(client, {"steps": 200})).start()
        server.wait_for(occupied=1)
        server.stop()
        server.stop()
        server.thread.join(PATIENCE_S)
        assert not server.thread.is_alive()
        assert not engine.sizes  # of the calls of its 200 steps
        engine.go.set()


@pytest.mark.parametrize("sent", [b"", b"POST /v1/im", b"head of a second"])
def test_who_sends_no_whole_head_is_cut_off(sent: bytes) -> None:
    with (
        running(fake_pipeline(), http=HttpSettings(head_s=0.2)) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection,
    ):
        if sent == b"head of a second":
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in connection.recv(65536)
            sent = b"GET /heal"
        connection.sendall(sent)
        while connection.recv(65536):
            pass


def test_a_body_that_comes_too_slowly() -> None:
    with running(fake_pipeline(), http=HttpSettings(body_s=0.2)) as server:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S)
        with connection:
            connection.sendall(_head(100) + b'{"n": ')
            answer = connection.recv(65536)
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert server.scheduler.stats().requests == 0


def test_who_does_not_read_is_cut_off() -> None:
    http = HttpSettings(write_s=0.3, sizes=("256x256",))
    with running(fake_pipeline(), http=http, send_buffer=2**14) as server, socket.socket() as connection:
        body = json.dumps({"n": 8, "size": "256x256", "steps": 1}).encode()  # a megabyte
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(_head(len(body)) + body)
        server.wait_for(finished=1)
        assert settled(lambda: not server.server.server_state.connections)


def test_a_long_response_arrives_whole() -> None:
    with running(fake_pipeline(), http=HttpSettings(sizes=("256x256",))) as server, server.client() as client:
        reply = client.post(GENERATIONS, json={"n": 8, "size": "256x256", "steps": 1, "seed": 3, "scope": None})
        assert len(reply.content) > 2**20
        expected = fake_pipeline().generate(n=8, seed=3, num_steps=1, height=256, width=256)
        for item, image in zip(reply.json()["data"], expected.images, strict=True):
            assert np.array_equal(_pixels(base64.b64decode(item["b64_json"])), image)


def test_a_place_that_is_taken(server: Running) -> None:
    with pytest.raises(DdmError, match="--port name another"):
        listen("127.0.0.1", server.port)
    with pytest.raises(DdmError, match="no-such-host"):
        listen("no-such-host.invalid", 0)


def test_connections_are_of_tcp_by_name() -> None:
    """Without it asyncio leaves Nagle's algorithm on, and each answer waits 40 ms for the client's kernel."""
    with listen("localhost", 0) as place:
        assert place.proto == socket.IPPROTO_TCP


def test_two_servers_do_not_meet() -> None:
    with running(fake_pipeline(FakeEngine())) as one, running(fake_pipeline()) as other:
        one.client().post(GENERATIONS, json={})
        assert "ddm_images_total 1.0" in one.client().get("/metrics").text
        assert "ddm_images_total 0.0" in other.client().get("/metrics").text


def _head(length: int) -> bytes:
    return (
        f"POST {GENERATIONS} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _post_and_forget(client: httpx2.Client, body: dict[str, object]) -> None:
    with suppress(httpx2.HTTPError):
        client.post(GENERATIONS, json=body)


def _pixels(content: bytes) -> np.ndarray:
    import io

    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
