"""Images behind URLs: kept for a while, within bounds, under names that nobody guesses."""

import io

import numpy as np
import pytest
from PIL import Image

from ddm_rt.serve.http.image_store import Pictures, picture


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
