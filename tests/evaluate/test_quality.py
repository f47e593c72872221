"""Distances against closed forms and slow references."""

import numpy as np
import pytest
from scipy.linalg import sqrtm
from tolerances import FRECHET_REL, STATISTIC_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate import quality


def normal(n, d, seed, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


@pytest.mark.parametrize(("n", "m", "d"), [(300, 200, 8), (50, 70, 1), (500, 90, 33)])
def test_frechet_against_sqrtm(n, m, d):
    x, y = normal(n, d, 0), normal(m, d, 1, 1.5, 0.3)
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    shift = ((x.mean(0) - y.mean(0)) ** 2).sum()
    expected = shift + np.trace(cov_x + cov_y - 2 * sqrtm(cov_x @ cov_y).real)
    assert quality.frechet(x, y) == pytest.approx(expected, rel=FRECHET_REL)


def test_frechet_of_singular_covariances():
    """Fewer images than features, and a feature that never varies: finite, 0 for equal sets, symmetric."""
    x, y = normal(10, 64, 0).astype(np.float32), normal(12, 64, 1).astype(np.float32)
    x[:, 3] = y[:, 3] = 1
    assert quality.frechet(x, x) == pytest.approx(0, abs=FRECHET_REL * 64)
    assert quality.frechet(x, y) == pytest.approx(quality.frechet(y, x), rel=FRECHET_REL)


def test_frechet_of_equal_sets_is_never_below_zero():
    for seed in range(20):
        x = normal(30, 12, seed)
        assert quality.frechet(x, x) >= 0


def test_frechet_of_a_shift_is_its_square():
    x = normal(100, 5, 0)
    assert quality.frechet(x, x + 2) == pytest.approx(20, rel=FRECHET_REL)


@pytest.mark.parametrize("block", [7, 5000])
def test_kid_against_the_sum_over_pairs(monkeypatch, block):
    monkeypatch.setattr(quality, "_BLOCK", block)
    x, y = normal(30, 4, 0), normal(23, 4, 1, shift=0.5)

    def k(a, b):
        return (a @ b / 4 + 1) ** 3

    within_x = np.mean([k(x[i], x[j]) for i in range(30) for j in range(30) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(23) for j in range(23) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert quality.kid(x, y) == pytest.approx(within_x + within_y - 2 * between, abs=STATISTIC_ABS)


def test_kid_is_unbiased():
    values = [quality.kid(normal(40, 3, i), normal(40, 3, 1000 + i)) for i in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))


@pytest.mark.parametrize("block", [7, 5000])
def test_prdc_against_definitions(monkeypatch, block):
    monkeypatch.setattr(quality, "_BLOCK", block)
    x, y, k = normal(31, 2, 0), normal(40, 2, 1, shift=1.0), 3
    between = np.linalg.norm(x[:, None] - y[None], axis=2)
    radius_x, radius_y = (np.sort(np.linalg.norm(z[:, None] - z[None], axis=2), axis=1)[:, k] for z in (x, y))
    expected = (
        np.mean([(between[i] <= radius_y).any() for i in range(31)]),
        np.mean([(between[:, j] <= radius_x).any() for j in range(40)]),
        np.mean([(between[:, j] <= radius_y[j]).any() for j in range(40)]),
    )
    assert quality.prdc(x, y, k) == pytest.approx(expected, abs=STATISTIC_ABS)


def test_prdc_of_equal_and_of_far_sets():
    x = normal(50, 3, 0)
    assert quality.prdc(x, x) == (1, 1, 1)
    assert quality.prdc(x, x + 100) == (0, 0, 0)


@pytest.mark.parametrize("measure", [quality.frechet, quality.kid, quality.prdc])
def test_bad_features(measure):
    x = normal(20, 4, 0)
    broken = x.copy()
    broken[3, 1] = np.nan
    for pair, message in [
        ((x, x[:, :3]), "reference features"),
        ((x[:1], x), "generated features"),
        ((x[0], x), "generated features"),
        ((broken, x), "generated features: values that are not finite"),
        ((x, broken * np.inf), "reference features: values that are not finite"),
    ]:
        with pytest.raises(DdmError, match=message):
            measure(*pair)


def test_per_group_takes_the_first_of_each() -> None:
    labels = np.resize(["a", "other", "b", "a"], 80)
    features, reference = normal(80, 3, 0), normal(20, 3, 1)
    ours, real = np.flatnonzero(labels == "a")[:12], np.arange(0, 20, 2)
    first, _ = quality.per_group(features, labels, reference, np.array(["a", "b"] * 10), ["a", "b"], n=12)
    assert first.quality == quality.quality(features[ours], reference[real])


def test_per_group_never_changes_n():
    features = normal(60, 3, 0)
    labels = np.array(["a"] * 40 + ["b"] * 20)
    found = quality.per_group(features, labels, normal(30, 3, 1), np.array(["a", "b"] * 15), ["a", "b"], n=25)
    assert found[0].quality is not None
    assert (found[0].quality.n, found[0].quality.n_reference) == (25, 15)
    assert found[1].quality is None
    assert found[1].reason == "5 of 25 images of b missing; generate more"
    [_, nearly] = quality.per_group(features, labels, features, labels, ["a", "b"], n=21)
    assert (nearly.quality, nearly.missing) == (None, 1)


def test_nearest():
    train = np.zeros((2, 4, 6, 3), np.uint8)
    train[1] = 255
    images = np.stack([train[0] + 51, train[1] - 51, train[0]])
    held_out = np.stack([train[0] + np.uint8(value) for value in range(51, 71)])
    found = quality.nearest(images, train, held_out)
    assert found.mean == pytest.approx(0.4 / 3)
    assert found.held_out_mean == pytest.approx(np.mean(np.arange(51, 71)) / 255)
    assert found.held_out_p05 == pytest.approx(np.percentile(np.arange(51, 71), 5) / 255)
    assert found.nearer_share == 1  # a copy, and two that are .2 away where real ones are at least .2
    with pytest.raises(DdmError, match="train"):
        quality.nearest(images, train[:, :3], held_out)
    with pytest.raises(DdmError, match="held_out"):
        quality.nearest(images, train, held_out[:0])


def test_as_near_as_a_held_out_image_is_not_nearer():
    train, held_out = np.zeros((2, 4, 6, 3), np.uint8), np.full((3, 4, 6, 3), 51, np.uint8)
    assert quality.nearest(held_out, train, held_out).nearer_share == 0
