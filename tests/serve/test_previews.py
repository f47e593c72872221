"""Previews: what the sampler foresees of an image on its way. They are spread evenly, and no image's bytes change."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from gated_engine import GatedEngine
from http_server import GENERATIONS, client_of, fake_pipeline
from numpy.typing import NDArray
from patience import PATIENCE_S, settled
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.sample.loop.slots import Slots
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.ticket import (
    Event,
    Finished,
    ImageReady,
    Preview,
    Progress,
    Ticket,
    preview_steps,
)
from ddm_rt.serve.settings import HttpSettings, ServeSettings


def pixels(b64: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64))))


def streamed(client: Any, **body: Any) -> list[dict[str, Any]]:
    text = client.post(GENERATIONS, json={"stream": True, "scope": None} | body).text
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize(
    ("steps", "previews", "after"),
    [(8, 3, {2, 4, 6}), (25, 2, {8, 16}), (4, 1, {2}), (2, 3, {1}), (1, 3, set()), (8, 0, set())],
)
def test_they_are_spread_evenly_and_come_before_the_last_step(steps: int, previews: int, after: set[int]) -> None:
    assert preview_steps(steps, previews) == after


@pytest.mark.parametrize(("partial_images", "each"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_stream_tells_as_many_as_were_asked_for(partial_images: int | None, each: int) -> None:
    with client_of(fake_pipeline()) as client:
        events = streamed(client, n=2, seed=5, steps=8, partial_images=partial_images, output_format="webp")
    partial = [event for event in events if event["type"] == "image_generation.partial_image"]
    for index in (0, 1):
        own = [event["partial_image_index"] for event in partial if event["index"] == index]
        assert own == list(range(each))
    fields = {"type", "index", "b64_json", "partial_image_index", "created_at", "size", "quality", "background"}
    assert all(event.keys() == fields | {"output_format"} for event in partial)
    assert all(Image.open(io.BytesIO(base64.b64decode(event["b64_json"]))).format == "WEBP" for event in partial)
    assert len([event for event in events if event["type"] == "image_generation.completed"]) == 2


def test_images_are_the_same_with_them() -> None:
    expected = fake_pipeline().generate(n=3, seed=5, num_steps=8).images
    with client_of(fake_pipeline()) as client:
        events = streamed(client, n=3, seed=5, steps=8, partial_images=3)
    for event in events:
        if event["type"] == "image_generation.completed":
            assert np.array_equal(pixels(event["b64_json"]), expected[event["index"]])


def test_without_a_stream_there_are_none() -> None:
    with client_of(fake_pipeline()) as client:
        assert client.post(GENERATIONS, json={"partial_images": 3}).json().keys() >= {"data"}


def test_who_comes_late_is_told_all_that_came_before_their_images() -> None:
    ticket, image = Ticket(2, 8, deadline=1.0), np.zeros((2, 2, 3), np.uint8)
    ticket.previews = preview_steps(4, 1)
    ticket.preview(0, image)
    ticket.preview(1, image)
    ticket.deliver(0, image)
    ticket.preview(0, image)  # late, from another thread
    told: list[Event] = []
    ticket.subscribe(told.append)
    assert [(type(event).__name__, event.index) for event in told] == [
        ("Preview", 0),
        ("Preview", 1),
        ("ImageReady", 0),
    ]


class BrokenAtFirst(FakeEngine):
    """Can't decode, the first time after it is set."""

    broken = False

    def decoder(self, x0: Any) -> NDArray[np.float32]:
        if self.broken:
            self.broken = False
            raise RuntimeError("no memory")
        return super().decoder(x0)


def test_one_that_fails_is_left_out_and_the_image_comes(caplog: pytest.LogCaptureFixture) -> None:
    engine, told = BrokenAtFirst(), list[Event]()
    with Scheduler(fake_pipeline(engine)) as scheduler:
        engine.broken = True
        ticket = scheduler.submit(Request(num_steps=8), previews=2)
        ticket.subscribe(told.append)
        ticket.result(PATIENCE_S)
        assert scheduler.drain(PATIENCE_S)
        assert scheduler.stats().decoding == 0
    assert isinstance(told[-1], Finished)
    assert len([event for event in told if isinstance(event, Preview)]) < 2
    assert "a delivery failed" in caplog.text


def test_the_shipped_bundles_come_closer_and_closer() -> None:
    with client_of(Pipeline.load(Bundle.load("digits"), backend="onnxruntime", threads=1)) as client:
        events = streamed(client, seed=1, partial_images=3)
    *partial, last = (pixels(event["b64_json"]).astype(float) for event in events)
    off = [float(np.abs(picture - last).mean()) for picture in partial]
    assert off == sorted(off, reverse=True)
    assert 0 < off[-1] < 20  # grey levels


def test_where_what_is_foreseen_cannot_be_had_all_images_come(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_room(slots: Slots, steps: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(Slots, "previewed", no_room)
    with Scheduler(fake_pipeline()) as scheduler:
        tickets = [scheduler.submit(Request(num_steps=8, seed=seed), previews=2 * (seed == 1)) for seed in (1, 2)]
        images = [ticket.result(PATIENCE_S).images for ticket in tickets]
    for seed, image in zip((1, 2), images, strict=True):
        assert np.array_equal(image, fake_pipeline().generate(num_steps=8, seed=seed).images)
    assert "previews are left out" in caplog.text


def test_images_do_not_wait_for_previews_where_decoding_is_behind() -> None:
    engine, told = GatedEngine(), list[Event]()
    with Scheduler(fake_pipeline(engine), ServeSettings(slots=1)) as scheduler:
        engine.decoding.clear()
        ticket = scheduler.submit(Request(num_steps=8), previews=3)
        ticket.subscribe(told.append)
        assert settled(lambda: scheduler.stats().occupied == 0 and scheduler.stats().decoding == 2)
        engine.decoding.set()
        ticket.result(PATIENCE_S)
    assert [type(event) for event in told if not isinstance(event, Progress)] == [Preview, ImageReady, Finished]


def test_a_replica_that_takes_over_adds_none() -> None:
    ticket, image, told = Ticket(1, 8, deadline=1.0), np.zeros((2, 2, 3), np.uint8), list[Event]()
    ticket.previews = preview_steps(8, 2)
    ticket.subscribe(told.append)
    for _ in range(4):
        ticket.preview(0, image)
    assert len(told) == 2


def test_previews_count_in_the_pixels_of_a_request() -> None:
    asked = {"size": "3840x3840", "stream": True, "steps": 1}
    with client_of(fake_pipeline(), http=HttpSettings(resize=True)) as client:
        told = client.post(GENERATIONS, json=asked | {"partial_images": 1})
    assert told.status_code == 400
    assert "and their previews have over 16777216 pixels" in told.json()["error"]["message"]
