"""Images behind URLs: kept for a while, within bounds, under names that nobody guesses."""

import base64
import io
import json

import numpy as np
import pytest
from http_server import GENERATIONS, client_of, fake_pipeline
from PIL import Image
from pydantic import ValidationError

from ddm_rt.sample.provenance import xmp
from ddm_rt.serve.http.image_store import Pictures, picture
from ddm_rt.serve.settings import HttpSettings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_names_are_long_and_different() -> None:
    pictures = Pictures(60, 1000)
    names = {pictures.keep(b"x", "png") for _ in range(100)}
    assert len(names) == 100
    assert all(len(name) == 43 + len(".png") and name.endswith(".png") for name in names)
    assert all(pictures.find(name) is not None for name in names)
    assert pictures.find("") is pictures.find("x") is None


def test_what_is_too_old_goes() -> None:
    clock = Clock()
    pictures = Pictures(60, 1000, clock)
    first = pictures.keep(b"first", "png")
    clock.now = 59
    second = pictures.keep(b"second", "webp")
    assert pictures.find(first).content == b"first"
    clock.now = 60
    assert pictures.find(first) is None
    assert pictures.find(second).media_type == "image/webp"
    assert len(pictures) == 1


def test_the_oldest_goes_where_there_are_too_many_bytes() -> None:
    pictures = Pictures(60, 10)
    names = [pictures.keep(bytes(4), "png") for _ in range(4)]
    assert [pictures.find(name) is not None for name in names] == [False, False, True, True]
    assert pictures.find(pictures.keep(bytes(11), "png")) is None


def test_just_as_many_bytes_as_may_be_kept_are() -> None:
    pictures = Pictures(60, 8)
    names = [pictures.keep(bytes(4), "png") for _ in range(2)]
    assert None not in [pictures.find(name) for name in names]
    pictures.keep(bytes(1), "png")
    assert [pictures.find(name) is not None for name in names] == [False, True]


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_files_of_every_format(kind: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    content = picture(image, kind, None)
    opened = Image.open(io.BytesIO(content))
    assert (opened.format, opened.size) == (kind.upper(), (12, 8))
    assert content == picture(image, kind, 100)
    if kind == "png":
        assert np.array_equal(np.asarray(opened), image)
    else:
        assert len(picture(image, kind, 10)) < len(content)


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
@pytest.mark.parametrize(("http", "with_code"), [({}, False), ({"provenance_code": True}, True)])
def test_files_say_what_made_them(kind: str, http: dict[str, bool], with_code: bool) -> None:
    body = {"output_format": kind, "n": 2, "seed": 3}
    with client_of(fake_pipeline(), http=HttpSettings(**http)) as client:
        reply = client.post(GENERATIONS, json=body).json()
        with client.stream("POST", GENERATIONS, json=body | {"stream": True}) as streamed:
            lines = [line[6:] for line in streamed.iter_lines() if line.startswith("data: {")]
    assert reply["manifest"]["request"]["provenance"] is True
    for item in (*reply["data"], *map(json.loads, lines)):
        said = Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).info["xmp"]
        assert said == xmp(reply["manifest"]["bundle_id"], item["seed"], item["code"] if with_code else None)


def test_files_say_nothing_where_the_server_wants_that() -> None:
    with client_of(fake_pipeline(), http=HttpSettings(provenance=False)) as client:
        reply = client.post(GENERATIONS, json={}).json()
        assert "provenance" not in reply["manifest"]["request"]
        assert "xmp" not in Image.open(io.BytesIO(base64.b64decode(reply["data"][0]["b64_json"]))).info
        told = client.post(GENERATIONS, json={"provenance": False})  # it isn't for clients to say
        assert told.status_code == 400


def test_a_server_without_provenance_has_no_code_to_write() -> None:
    with pytest.raises(ValidationError, match="provenance_code is given, but provenance is off"):
        HttpSettings(provenance=False, provenance_code=True)
