"""The shipped bundle on ONNX Runtime: what an image's bytes may depend on, and what they may not."""

import numpy as np
import pytest
from tolerances import IMAGE_GREY_LEVELS

from ddm_rt.sample.loop.noise import derive
from ddm_rt.sample.pipeline import Pipeline

N, SEED = 12, 3


@pytest.fixture(scope="module")
def alike() -> np.ndarray:
    return Pipeline.load("digits", threads=1).generate(n=N, seed=SEED).images


def test_a_restart_and_another_batch_change_no_byte(alike: np.ndarray) -> None:
    again = Pipeline.load("digits", threads=1)
    codes = again.generate(n=N, seed=SEED).codes
    for i in (0, 5, N - 1):
        alone = again.generate(n=1, seed=derive(SEED, i), codes=[codes[i]])
        np.testing.assert_array_equal(alone.images[0], alike[i])
    np.testing.assert_array_equal(again.generate(n=3, seed=SEED).images, alike[:3])


@pytest.mark.slow(reason="opens the bundle with other threads")
def test_another_thread_count_is_within_a_grey_level(alike: np.ndarray) -> None:
    other = Pipeline.load("digits", threads=2).generate(n=N, seed=SEED).images
    assert np.abs(other.astype(int) - alike.astype(int)).max() <= IMAGE_GREY_LEVELS
    assert alike.std() > 0


def test_top_codes_take_turns() -> None:
    generation = Pipeline.load("digits", threads=1).generate(n=N, seed=SEED)
    tops = np.array([image["top_code"] for image in generation.manifest["images"]])
    for prefix in range(1, N + 1):
        assert abs(int((tops[:prefix] == 0).sum()) - prefix / 2) <= 0.5
