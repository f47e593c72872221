"""Candidates of drawn images: a split that every view sees is among the first."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from ddm_rt.config import CodesConfig
from ddm_rt.errors import DdmError
from ddm_rt.train.factors.candidates import find_candidates
from ddm_rt.train.factors.views import gradients, outline, principal

CONFIG = CodesConfig(micro_codes=8, bootstraps=3)
Seen = tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]


def pictures(count: int = 120) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Bars that stand and bars that lie, 3:1, float32 [N,1,16,16] in [-1,1]."""
    rng = np.random.default_rng(0)
    lying = (np.arange(count) % 4 == 0).astype(np.int64)
    images = np.full((count, 1, 16, 16), -1.0, np.float32)
    for image, flat in zip(images, lying, strict=True):
        at = rng.integers(6, 8)
        image[0, 2:14, at : at + 3] = 1
        if flat:
            image[0] = image[0].T.copy()
    return images + rng.normal(0, 0.2, images.shape).astype(np.float32), lying


@pytest.fixture(scope="module")
def seen() -> Seen:
    images, lying = pictures()
    return {
        "gradients": gradients(images),
        "outline": outline(images),
        "pixels": principal(images.reshape(len(images), -1)),
    }, lying


def test_a_split_that_every_view_sees_is_among_the_first(
    seen: Seen,
) -> None:
    views, lying = seen
    told: list[int] = []
    found = find_candidates(views, CONFIG, 0, lambda done, total, figures: told.append(done))
    (best,) = (each for each in found[:3] if adjusted_rand_score(each.label, lying) == 1)
    assert best.sizes == (90, 30)
    assert best.agreement > 0.9
    assert best.stability > 0.9
    assert told == [1, 2, 3, 4]
    assert [each.known for each in found] == sorted((each.known for each in found), reverse=True)


def test_the_same_seed_gives_the_same_candidates(
    seen: Seen,
) -> None:
    first, again = (find_candidates(seen[0], CONFIG, 3) for _ in range(2))
    assert [each.label.tolist() for each in first] == [each.label.tolist() for each in again]


def test_too_few_images_are_refused(seen: Seen) -> None:
    few = {view: features[:8] for view, features in seen[0].items()}
    with pytest.raises(DdmError, match=r"codes\.micro_codes is 8, but there are only 8 images"):
        find_candidates(few, CONFIG, 0)


def test_an_outline_does_not_depend_on_the_background() -> None:
    images, _ = pictures(8)
    assert np.array_equal(outline(np.rint(images)), outline(-np.rint(images)))
