"""OpenAI's own client against a real server on a loopback port."""

import base64
import io
import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from gated_engine import GatedEngine
from http_server import GENERATIONS, Running, fake_pipeline, running, stopped_pipeline
from patience import settled
from PIL import Image

from ddm_rt.serve.settings import HttpSettings, ServeSettings

openai = pytest.importorskip("openai", reason="needs ddm-rt[integration]")

pytestmark = pytest.mark.slow(reason="needs ddm-rt[integration]")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(fake_pipeline(), http=HttpSettings()) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    http = openai.DefaultHttpxClient(trust_env=False)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=http) as client:
        yield client


def test_it_gets_images(client: Any) -> None:
    ours = {"seed": 5, "steps": 6, "scope": None}
    reply = client.images.generate(model="fake", prompt="a dog", n=2, size="8x8", user="someone", extra_body=ours)
    expected = fake_pipeline().generate(n=2, seed=5, num_steps=6)
    for item, image in zip(reply.data, expected.images, strict=True):
        assert np.array_equal(pixels(item), image)
    assert reply.manifest == expected.manifest
    assert (reply.output_format, reply.size) == ("png", "8x8")


def test_it_gets_urls(client: Any) -> None:
    reply = client.images.generate(prompt="", response_format="url", output_format="webp")
    picture = httpx2.get(reply.data[0].url, trust_env=False)
    assert picture.headers["content-type"] == "image/webp"
    assert reply.data[0].b64_json is None


def test_it_reads_the_stream(client: Any) -> None:
    events = list(client.images.generate(prompt="", n=2, stream=True, extra_body={"seed": 5, "scope": None}))
    completed = events  # OpenAI's client knows no other events of ours
    assert {event.type for event in events} == {"image_generation.completed"}
    images = fake_pipeline().generate(n=2, seed=5).images
    assert sorted(event.index for event in completed) == [0, 1]
    for event in completed:
        assert np.array_equal(pixels(event), images[event.index])
        assert event.usage.total_tokens == 0


def test_it_reads_previews(client: Any) -> None:
    events = list(client.images.generate(prompt="", stream=True, partial_images=2, extra_body={"seed": 5}))
    assert [event.type for event in events] == ["image_generation.partial_image"] * 2 + ["image_generation.completed"]
    assert [event.partial_image_index for event in events[:2]] == [0, 1]
    assert all(pixels(event).shape == (8, 8, 3) for event in events)


def test_it_reads_events_of_ours_on_request(client: Any) -> None:
    more = {"extra_events": True, "scope": None}
    types = [event.type for event in client.images.generate(prompt="", n=2, stream=True, extra_body=more)]
    assert types[0] == "image_generation.started"
    assert types[-1] == "image_generation.finished"


def test_its_defaults_and_what_changes_nothing_are_taken(client: Any) -> None:
    reply = client.images.generate(
        prompt="a dog",
        quality="auto",
        background="auto",
        complexity="medium",
        moderation="auto",
        style="vivid",
        output_compression=100,
        partial_images=0,
        safety_identifier="someone",
    )
    assert reply.usage.total_tokens == 0
    assert reply.background == "opaque"
    raw = client.images.with_raw_response.generate(prompt="a dog")
    assert "ignored" in raw.headers["x-ddm-warning"]
    assert raw.request_id.startswith("req_")


def test_a_loop_that_looks_at_no_type_gets_images_alone(client: Any) -> None:
    for event in client.images.generate(prompt="a dog", n=3, stream=True, quality="high", background="opaque"):
        assert pixels(event).shape == (8, 8, 3)


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # OpenAI has them no more, its client has
def test_edits_and_variations_say_that_there_are_none(client: Any) -> None:
    file = ("image.png", b"no image", "image/png")
    for call in (
        lambda: client.images.edit(image=file, prompt="a dog"),
        lambda: client.images.create_variation(image=file),
    ):
        with pytest.raises(openai.NotFoundError, match="neither edits nor varies") as refused:
            call()
        assert refused.value.code == "unsupported"


def test_it_understands_errors(client: Any) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.images.generate(prompt="", n=65)
    assert (bad.value.param, bad.value.code, bad.value.type) == ("n", "invalid_value", "invalid_request_error")
    with pytest.raises(openai.NotFoundError):
        client.images.generate(prompt="", model="dall-e-3")
    with pytest.raises(openai.APIError, match="deadline"):
        list(client.images.generate(prompt="", stream=True, extra_body={"deadline_s": 1e-4, "steps": 200}))
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").prompt_free


def test_it_waits_when_it_is_told_to(engine: GatedEngine) -> None:
    """More requests at once than may wait: those over it get 429 with a time, come again, and all are served."""
    with running(stopped_pipeline(engine), ServeSettings(slots=1, queue=1)) as server:
        for requests in (1, 2):
            threading.Thread(target=server.client().post, args=(GENERATIONS,), kwargs={"json": {}}).start()
            server.wait_for(requests=requests, waiting=requests - 1)  # the first has its slot before the second comes
        threading.Thread(target=_open_once_refused, args=(server, engine)).start()
        http = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=50, http_client=http) as client:
            assert client.images.generate(prompt="").data
        assert server.scheduler.stats().rejected["queue"] >= 1


def _open_once_refused(server: Running, engine: GatedEngine) -> None:
    """The engine goes on once a request was refused."""
    assert settled(lambda: server.scheduler.stats().rejected.get("queue", 0) >= 1)
    engine.go.set()


def pixels(item: Any) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item.b64_json))).convert("RGB"))
