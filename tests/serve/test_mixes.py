"""Random mixes of requests: every image has the bytes that it has alone, and the ledger adds up."""

import random
import threading
from collections import Counter
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, Quirk, fake_bundle
from patience import PATIENCE_S

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.loop.noise import derive
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, QueueFull
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.ticket import Event, ImageReady, State, Ticket
from ddm_rt.serve.settings import ServeSettings

WAIT_S = PATIENCE_S
SCOPES = (None, "one", "two")
QUIRKS: tuple[Quirk, ...] = ("none", "batch size", "position", "neighbours", "size 1")


def random_request(draw: random.Random, most_images: int, most_steps: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "n": draw.randint(1, most_images),
        "seed": draw.getrandbits(64),
        "num_steps": draw.randint(1, most_steps),
        "sampler": draw.choice(["ddim", "ddpm", "euler", "dpm++2m"]),
        "indicator_guidance_scale": draw.choice([0.0, 1.0, 1.5, 4.0]),
        "height": draw.choice(sizes),
        "width": draw.choice(sizes),
    }
    if draw.random() < 0.3:
        asked["guidance_interval"] = draw.choice([(0.0, 1.0), (0.0, 1 / asked["num_steps"]), (0.5, 1.0)])
    if draw.random() < 0.3:
        asked["apg"] = draw.choice([(0.5, 0.0), (20.0, 0.25)])
    if draw.random() < 0.3 and asked["num_steps"] > 2 and asked["sampler"] != "ddpm":
        between = draw.sample(range(1, asked["num_steps"] - 1), draw.randint(0, asked["num_steps"] - 2))
        steps = (0, *sorted(between), asked["num_steps"] - 1)
        asked["cache"] = Reuse(steps=steps, rows=tuple((0.4, 0.5, 0.1, draw.random()) for _ in steps))
    kind = draw.choice(["scope", "codes", "off", "shuffled"])
    if kind == "scope":
        asked["scope"] = draw.choice(SCOPES)
    elif kind == "codes":
        asked["codes"] = [draw.randint(-1, 3) for _ in range(asked["n"])]
    elif kind == "off":
        asked["balance"] = "off"
    else:
        asked["shuffle"] = True
    return asked


class Client(threading.Thread):
    """Submits requests one after the other, and gives some of them up after some images."""

    def __init__(self, scheduler: Scheduler, draw: random.Random, requests: list[dict[str, Any]]) -> None:
        super().__init__()
        self._scheduler, self._draw, self._requests = scheduler, draw, requests
        self.tickets: list[Ticket] = []
        self.images: dict[Ticket, dict[int, np.ndarray[Any, Any]]] = {}
        self.refused = 0

    def run(self) -> None:
        for asked in self._requests:
            deadline_s = self._draw.choice([None, None, None, 0.002])
            try:
                ticket = self._scheduler.submit(
                    Request(**asked), priority=self._draw.randint(0, 2), deadline_s=deadline_s
                )
            except (QueueFull, DeadlineExceeded):
                self.refused += 1
                continue
            self.tickets.append(ticket)
            found = self.images[ticket] = {}
            after = self._draw.choice([None, None, 0, 1, 2])

            def told(event: Event, ticket: Ticket = ticket, found: Any = found, after: int | None = after) -> None:
                if isinstance(event, ImageReady):
                    found[event.index] = event.image
                if after is not None and len(found) >= after:
                    ticket.cancel()

            ticket.subscribe(told)
            if self._draw.random() < 0.3:
                self._end(ticket)

    def _end(self, ticket: Ticket) -> None:
        with suppress(Cancelled, DeadlineExceeded):
            ticket.result(WAIT_S)


def run_mix(pipeline: Pipeline, alone: Pipeline, mix: int, requests: list[dict[str, Any]], **settings: Any) -> int:
    """Returns the number of requests that came to their end, all of them checked."""
    draw = random.Random(mix)
    with Scheduler(pipeline, ServeSettings(**settings)) as scheduler:
        clients = [Client(scheduler, random.Random(draw.random()), requests[i::3]) for i in range(3)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert scheduler.drain(WAIT_S)
        stats = scheduler.stats()
    tickets = [ticket for client in clients for ticket in client.tickets]
    done = [ticket for ticket in tickets if ticket.state is State.FINISHED]
    assert len(tickets) + sum(client.refused for client in clients) == len(requests)
    assert stats.finished == len(done)
    assert stats.finished + stats.failed + stats.cancelled == len(tickets)
    assert (stats.requests, stats.waiting, stats.occupied, stats.decoding) == (0, 0, 0, 0)
    drawn: Counter[tuple[str, int]] = Counter()
    for ticket in done:
        generation = ticket.result(0)
        expected = alone.replay(generation.manifest)
        assert generation.images.tobytes() == expected.images.tobytes()
        request = generation.manifest["request"]
        if request["scope"] is not None:
            drawn.update((request["scope"], code) for code in generation.codes)
    for client in clients:
        for ticket, found in client.images.items():
            if ticket.state is State.FINISHED:
                images = ticket.result(0).images
                assert sorted(found) == list(range(ticket.n))
                assert all((images[index] == image).all() for index, image in found.items())
    for scope in SCOPES[1:]:
        counts = pipeline.ledger.counts(Stream(pipeline.bundle.bundle_id, scope, "uniform"))
        assert not counts.leased
        assert counts.done == Counter({code: n for (name, code), n in drawn.items() if name == scope})
    return len(done)


@cache
def fake_pipeline(quirk: Quirk) -> Pipeline:
    return Pipeline(fake_bundle(), FakeEngine(quirk))


@pytest.mark.parametrize("quirk", QUIRKS)
def test_images_of_random_mixes_are_those_of_each_request_alone(quirk: Quirk) -> None:
    """200 mixes in all. All quirks but the first make bytes depend on the batch, were it not for the probe."""
    alone, done = fake_pipeline(quirk), 0
    for mix in range(40):
        draw = random.Random(f"{quirk} {mix}")
        alone.ledger = Ledger()
        requests = [random_request(draw, 6, 5, (4, 8, 12)) for _ in range(draw.randint(2, 9))]
        done += run_mix(alone, alone, mix, requests, slots=draw.randint(1, 9), queue=draw.randint(6, 40))
    assert done  # how many are in time depends on the machine


def test_images_of_random_mixes_are_those_of_each_request_alone_on_onnx_runtime() -> None:
    pipeline = Pipeline.load("digits", "onnxruntime", threads=1)
    alone = Pipeline.load("digits", "onnxruntime", threads=1)
    done = 0
    for mix in range(6):
        draw = random.Random(mix)
        pipeline.ledger = Ledger()
        requests = [random_request(draw, 4, 6, (32,)) for _ in range(draw.randint(2, 7))]
        done += run_mix(pipeline, alone, mix, requests, slots=draw.choice([3, 8, 16]))
    assert done


def test_a_request_of_many_is_many_requests_of_one() -> None:
    pipeline = fake_pipeline("batch size")
    with Scheduler(pipeline, ServeSettings(slots=5)) as scheduler:
        codes = [0, -1, 1, 3, 2, 2, -1, 0]
        whole = scheduler.submit(Request(n=8, seed=9, codes=codes))
        single = [scheduler.submit(Request(seed=derive(9, i), codes=[code])) for i, code in enumerate(codes)]
        images = np.concatenate([ticket.result(WAIT_S).images for ticket in single])
        assert images.tobytes() == whole.result(WAIT_S).images.tobytes()


def test_requests_that_are_too_large_are_refused_in_any_mix() -> None:
    with Scheduler(fake_pipeline("none"), ServeSettings(max_images=4)) as scheduler, pytest.raises(DdmError):
        scheduler.submit(Request(n=5))
