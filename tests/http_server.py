"""Servers of tests: the application in this process, and a real one on a loopback port."""

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from fake_engine import FakeEngine, fake_bundle
from fastapi.testclient import TestClient
from gated_engine import GatedEngine
from patience import PATIENCE_S, settled

from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.http.app import create_app
from ddm_rt.serve.http.server import Server, listen
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.service import Service
from ddm_rt.serve.settings import HttpSettings, ServeSettings

GENERATIONS = "/v1/images/generations"


class SlowEngine(FakeEngine):
    """Each denoiser call takes `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def denoiser(self, *arguments: Any) -> Any:
        time.sleep(self.seconds)
        return super().denoiser(*arguments)


def fake_pipeline(engine: FakeEngine | None = None, **bundle: Any) -> Pipeline:
    return Pipeline(fake_bundle(**bundle), FakeEngine() if engine is None else engine)


def stopped_pipeline(engine: GatedEngine, call: int = 0) -> Pipeline:
    """Its engine stops before that call of the denoiser, after the probes."""
    pipeline = fake_pipeline(engine)
    assert pipeline.buckets
    engine.sizes.clear()
    engine.stop_at = call
    return pipeline


@contextmanager
def client_of(
    pipeline: Pipeline, settings: ServeSettings | None = None, http: HttpSettings | None = None, **options: Any
) -> Iterator[TestClient]:
    """A client of the application, without a network between them."""
    with Scheduler(pipeline, settings) as scheduler:
        app = create_app(scheduler, http or HttpSettings(), **options)
        with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
            yield client


@dataclass
class Running:
    url: str
    port: int
    scheduler: Service[Any]
    server: Server
    thread: threading.Thread

    def stop(self) -> None:
        """As SIGTERM does."""
        self.server.handle_exit(signal.SIGTERM, None)

    def client(self) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=PATIENCE_S, trust_env=False)

    def wait_for(self, **wanted: int) -> None:
        """Until the scheduler's counts are these."""

        def come() -> bool:
            stats = self.scheduler.stats()
            return all(getattr(stats, name) == value for name, value in wanted.items())

        assert settled(come), (wanted, self.scheduler.stats())


@contextmanager
def running(
    pipeline: Pipeline,
    settings: ServeSettings | None = None,
    http: HttpSettings | None = None,
    *,
    send_buffer: int | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server on a free loopback port. The system keeps `send_buffer` bytes for a client that doesn't read."""
    with (
        Scheduler(pipeline, settings) as scheduler,
        answering(scheduler, http, send_buffer=send_buffer, **options) as server,
    ):
        yield server


@contextmanager
def answering(
    scheduler: Service[Any], http: HttpSettings | None = None, *, send_buffer: int | None = None, **options: Any
) -> Iterator[Running]:
    """A server over what samples already."""
    http = http or HttpSettings()
    answers = threading.Event()
    with listen("127.0.0.1", 0) as place:
        if send_buffer is not None:
            place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        port = place.getsockname()[1]
        server = Server(create_app(scheduler, http, **options), scheduler, http, answers.set)
        thread = threading.Thread(target=server.run, args=([place],))
        thread.start()
        try:
            assert answers.wait(PATIENCE_S)
            yield Running(f"http://127.0.0.1:{port}", port, scheduler, server, thread)
        finally:
            server.handle_exit(signal.SIGTERM, None)
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
