"""The servers that are measured: ours in this process or as a command, and one that runs a request at a time."""

import base64
import json
import re
import signal
import subprocess
import sys
import threading
import urllib.request
from asyncio import Lock, to_thread
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from ddm_rt.sample.generation import encoded
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.app import create_app
from ddm_rt.serve.http.schema import ImageRequest
from ddm_rt.serve.http.server import Server, listen
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.settings import HttpSettings, ServeSettings

START_S = 60.0


@contextmanager
def served(
    pipeline: Pipeline, settings: ServeSettings | None = None, http: HttpSettings | None = None
) -> Iterator[tuple[int, Scheduler]]:
    """Our server in a thread of this process: its port and its scheduler."""
    http = http or HttpSettings()
    ready = threading.Event()
    with listen("127.0.0.1", 0) as place, Scheduler(pipeline, settings) as scheduler:
        server = Server(create_app(scheduler, http), scheduler, http, ready.set)
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            if not ready.wait(START_S):
                raise RuntimeError(f"the server was not ready within {START_S:g} s")
            yield place.getsockname()[1], scheduler
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join()


@contextmanager
def one_at_a_time(pipeline: Pipeline) -> Iterator[int]:
    """The port of what many people write: FastAPI, a lock around the engine, PNG in base64. The same framework, the
    same fields, and a whole request as one batch.
    """
    app, lock = FastAPI(), Lock()

    def made(body: ImageRequest) -> dict[str, Any]:
        generation = pipeline.generate(body.asked(pipeline.bundle, HttpSettings()))
        data = [
            {"b64_json": base64.b64encode(encoded(image)).decode(), "code": code}
            for image, code in zip(generation.images, generation.codes, strict=True)
        ]
        return {"data": data, "manifest": generation.manifest}

    @app.post("/v1/images/generations")
    async def generate(body: ImageRequest) -> dict[str, Any]:
        async with lock:
            return await to_thread(made, body)

    with listen("127.0.0.1", 0) as place:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="off"))
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            yield place.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@dataclass(frozen=True)
class Commanded:
    """`ddm-rt serve` in a process of its own."""

    port: int
    pid: int

    def rss_mib(self) -> float:
        return round(int(self._status()["VmRSS"].split()[0]) / 1024, 1)

    def threads(self) -> int:
        return int(self._status()["Threads"])

    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))

    def _status(self) -> dict[str, str]:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return dict(line.split(":", 1) for line in lines)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=START_S) as answer:
            text: str = answer.read().decode()
        return text

    def metrics(self) -> dict[str, float]:
        """What /metrics says, by name and labels."""
        lines = [line for line in self.get("/metrics").splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def balance(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.get("/v1/balance"))["data"]
        return found


@contextmanager
def commanded(*options: str, within: Sequence[str] = ()) -> Iterator[Commanded]:
    """The shipped bundle, served by the command that users type, which the command `within` may start in its place."""
    command = [*within, sys.executable, "-P", "-m", "ddm_rt.cli", "serve", "digits", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        port = next((int(found[1]) for line in process.stdout if (found := re.search(r"127\.0\.0\.1:(\d+)", line))), 0)
        if not port:
            raise RuntimeError(f"ddm-rt serve ended with exit code {process.wait()}")
        yield Commanded(port, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(START_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits. Raises RuntimeError where it doesn't come true."""
    pause, left = threading.Event(), seconds
    while not condition():
        if left <= 0:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        pause.wait(0.05)
        left -= 0.05
