"""The test for copies on images whose answer is known."""

import numpy as np
import pytest
from bench_parts.copying import copying

from ddm_rt.errors import DdmError


def _pictures(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)


def test_copying_tells_copies_from_fresh_draws() -> None:
    rng = np.random.default_rng(0)
    train, held_out, fresh = _pictures(rng, 200), _pictures(rng, 250), _pictures(rng, 400)
    copied = copying(train[:100], train, held_out)
    assert copied.share == 1.0
    assert copied.of_each == 200
    independent = copying(fresh, train, held_out)
    assert independent.interval[0] < 0.5 < independent.interval[1]


def test_copying_takes_as_many_training_as_held_out_images() -> None:
    def grey(*levels: int) -> np.ndarray:
        return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])

    image, far, near = grey(100), grey(0, 0), grey(0, 0, 100)
    assert copying(image, near, grey(90, 90)).share == 0  # the third training image isn't compared
    assert copying(image, grey(90, 90), near).share == 1
    assert copying(image, far, grey(90, 90)).of_each == 2


def test_an_image_as_far_from_both_sets_is_no_copy() -> None:
    pictures = _pictures(np.random.default_rng(0), 5)
    found = copying(pictures, pictures, pictures)
    assert (found.share, found.interval[0]) == (0, 0)


def test_copying_refuses_another_size() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(DdmError, match="held_out"):
        copying(_pictures(rng, 3), _pictures(rng, 3), np.zeros((3, 4, 4, 3), np.uint8))


def test_a_copy_that_was_moved_is_found_when_it_is_moved_back() -> None:
    rng = np.random.default_rng(1)
    train, held_out = (np.zeros((60, 12, 12, 3), np.uint8) for _ in range(2))
    for pictures in (train, held_out):
        pictures[:, 4:8, 4:8] = rng.integers(0, 256, (60, 4, 4, 3), dtype=np.uint8)
    moved = copying(np.roll(train, (1, -1), axis=(1, 2)), train, held_out)
    assert moved.moved_share == 1
    assert moved.share < 0.9


def test_images_that_share_their_nearest_one_count_as_few() -> None:
    rng = np.random.default_rng(2)
    train, held_out = _pictures(rng, 50), _pictures(rng, 50)
    assert copying(train, train, held_out).nearest == pytest.approx(50)
    assert copying(np.repeat(train[:2], 25, axis=0), train, held_out).nearest == pytest.approx(2)
