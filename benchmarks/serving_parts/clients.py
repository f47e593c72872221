"""HTTP clients in a process of their own, so that their work is not the server's: standard library alone.

    python clients.py '{"port": 8000, "clients": 16, "seconds": 20}'

prints one JSON list [start, end, status, n, steps, codes, images] per request, times in seconds of the system's
monotonic clock. Status -1: the client went away; 0: no answer. `codes` maps a code to its images, for those that were
delivered.
"""

import base64
import hashlib
import http.client
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

PATH = "/v1/images/generations"
_HEAD = (
    f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {{length}}\r\n\r\n"
)
GONE = -1
NO_ANSWER = 0


@dataclass(frozen=True)
class Load:
    """What clients ask for. Request after request each, or, with `rate`, so many requests a second whatever happens."""

    port: int
    clients: int
    seconds: float
    sizes: tuple[int, int] = (1, 16)  # n is drawn between these
    steps: tuple[int, ...] = (8, 25)
    seed: int = 0
    rate: float | None = None
    deadline_s: float | None = None
    scopes: tuple[str, ...] = ()  # besides the server's own
    leaving: float = 0.0  # the part of the requests whose client goes away
    streaming: float = 0.0  # the part that asks for server-sent events
    timeout_s: float = 120.0
    seeds: int = 2**32  # of requests are drawn below this
    digests: bool = False  # whether answers say what each image was


class Answer(NamedTuple):
    start: float
    end: float
    status: int
    n: int
    steps: int
    codes: dict[str, int]
    images: Sequence[tuple[int, int, str]] = ()  # seed, code and SHA-256 of each that came whole, where asked for

    @property
    def seconds(self) -> float:
        return self.end - self.start


@contextmanager
def clients(load: Load) -> Iterator["Clients"]:
    """Clients in a process of their own; they stop with the block."""
    command = [sys.executable, "-P", str(Path(__file__).resolve()), json.dumps(asdict(load))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield Clients(process)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Clients:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def answers(self) -> list[Answer]:
        """Waits for them to be through. Raises RuntimeError where they broke."""
        out, _ = self._process.communicate()
        if self._process.returncode != 0:
            raise RuntimeError(f"clients ended with exit code {self._process.returncode}")
        return [Answer(*json.loads(line)) for line in out.splitlines()]


def asked(load: Load) -> list[Answer]:
    """The answers to all of a load."""
    with clients(load) as running:
        return running.answers()


class _Client:
    """One connection, opened again where it was lost."""

    def __init__(self, load: Load, name: str) -> None:
        self._load, self._rng = load, random.Random(f"{load.seed} {name}")
        self._socket: socket.socket | None = None
        self._used = False  # for a request that was answered

    def ask(self) -> Answer:
        load, rng = self._load, self._rng
        n, steps = rng.randint(*load.sizes), rng.choice(load.steps)
        body: dict[str, Any] = {"n": n, "steps": steps, "seed": rng.randrange(load.seeds)}
        body["stream"] = body["extra_events"] = rng.random() < load.streaming
        if load.deadline_s is not None:
            body["deadline_s"] = load.deadline_s
        if load.scopes:
            body["scope"] = rng.choice(load.scopes)
        leave_s = rng.uniform(0.0, 1.0) if rng.random() < load.leaving else None
        start = time.monotonic()
        try:
            try:
                status, kind, content = self._send(json.dumps(body).encode(), leave_s)
            except (ConnectionError, http.client.RemoteDisconnected):
                # The server closes connections that nobody used for seconds, perhaps at this moment: try once again.
                if not self._used:
                    raise
                self._close()
                status, kind, content = self._send(json.dumps(body).encode(), leave_s)
        except (OSError, http.client.HTTPException) as error:
            self._close()
            left = leave_s is not None and isinstance(error, TimeoutError)
            return Answer(start, time.monotonic(), GONE if left else NO_ANSWER, n, steps, {})
        end = time.monotonic()
        text = content.decode()
        images = _images(text, kind) if load.digests and status == 200 else []
        return Answer(start, end, status, n, steps, _codes(text, kind), images)

    def _send(self, body: bytes, leave_s: float | None) -> tuple[int, str, bytes]:
        """Status, content type and content. Raises TimeoutError after `leave_s` seconds without a byte."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._load.port))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.settimeout(self._load.timeout_s if leave_s is None else leave_s)
        # Head and body at once, as clients in C do; `http.client` sends two packets.
        self._socket.sendall(_HEAD.format(length=len(body)).encode() + body)
        response = http.client.HTTPResponse(self._socket, method="POST")
        response.begin()
        kind, content = response.headers.get_content_type(), response.read()
        self._used = True
        if response.will_close:
            self._close()
        return response.status, kind, content

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket, self._used = None, False


def _events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def _images(text: str, kind: str) -> list[tuple[int, int, str]]:
    """Seed, code and SHA-256 of each image that came."""
    came = _events(text) if kind == "text/event-stream" else json.loads(text)["data"]
    pictures = [each for each in came if each.get("b64_json")]
    return [(each["seed"], each["code"], digest(base64.b64decode(each["b64_json"]))) for each in pictures]


def digest(png: bytes) -> str:
    """SHA-256 of what a PNG shows: its header and pixels, without texts that stand beside them."""
    shown, at = hashlib.sha256(), 8
    while at < len(png):
        length, kind = int.from_bytes(png[at : at + 4]), png[at + 4 : at + 8]
        if kind in (b"IHDR", b"IDAT"):
            shown.update(png[at + 8 : at + 8 + length])
        at += 12 + length
    return shown.hexdigest()


def _codes(text: str, kind: str) -> dict[str, int]:
    """How many images of each code an answer delivered."""
    if kind == "text/event-stream":
        finished = [event for event in _events(text) if event.get("type") == "image_generation.finished"]
        images = finished[0]["manifest"]["images"] if finished else []
    else:
        images = json.loads(text).get("data", [])
    return dict(Counter(str(image["code"]) for image in images))


def _one_after_another(load: Load, until: float, number: int, found: list[Answer]) -> None:
    client = _Client(load, str(number))
    while time.monotonic() < until:
        found.append(client.ask())


def _at_a_rate(load: Load, until: float, rate: float, found: list[Answer]) -> None:
    """Arrivals are a Poisson process; each takes a connection that is free."""
    rng = random.Random(f"{load.seed} arrivals")
    free = [_Client(load, str(number)) for number in range(load.clients)]
    due = time.monotonic()

    def ask() -> None:
        client = free.pop()
        found.append(client.ask())
        free.append(client)

    with ThreadPoolExecutor(load.clients) as pool:
        while (due := due + rng.expovariate(rate)) < until:
            time.sleep(max(due - time.monotonic(), 0.0))
            pool.submit(ask)


def run(load: Load) -> Sequence[Answer]:
    """All of it, in this process."""
    until = time.monotonic() + load.seconds
    found: list[Answer] = []
    if load.rate is not None:
        _at_a_rate(load, until, load.rate, found)
        return found
    threads = [
        threading.Thread(target=_one_after_another, args=(load, until, number, found)) for number in range(load.clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    for answer in run(Load(**(given | lists))):
        print(json.dumps(answer))
