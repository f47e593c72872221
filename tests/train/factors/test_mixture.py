"""Equal-share mixtures, erasure and raking, on drawn points whose factors are known."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression
from sklearn.metrics import adjusted_rand_score

from ddm_rt.train.factors.mixture import equal_share_factors, erase
from ddm_rt.train.factors.raking import CAP, effective, raked

Labels = NDArray[np.int64]


def points(counts: NDArray[np.int64], seed: int = 0) -> tuple[NDArray[np.float32], list[Labels]]:
    """Points [N, 24] around the sums of two factors' centres, `counts` [A, B] of each combination, and the factors."""
    rng = np.random.default_rng(seed)
    pairs = np.array([(a, b) for a, row in enumerate(counts) for b, n in enumerate(row) for _ in range(n)])
    pairs = rng.permutation(pairs)
    axes = np.linalg.qr(rng.standard_normal((24, 24)))[0]
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * 6.0
    z = pairs[:, :1] * 6.0 * axes[0] + corners[pairs[:, 1]] @ axes[1:4] + rng.standard_normal((len(pairs), 24)) * 0.8
    return z.astype(np.float32), [pairs[:, 0], pairs[:, 1]]


def test_two_crossing_factors_out_of_balance_are_found() -> None:
    z, truth = points(np.array([[160, 80, 40, 20], [40, 20, 12, 12]]))
    found = equal_share_factors(z, seed=0)
    for factor in truth:
        assert max(adjusted_rand_score(factor, label) for label in found) > 0.95


def test_points_without_clusters_have_no_factor() -> None:
    assert equal_share_factors(np.random.default_rng(0).standard_normal((300, 24)).astype(np.float32), seed=0) == []


def test_features_of_few_values_end_the_search_without_an_error() -> None:
    one_hot = np.eye(4, dtype=np.float32)[np.arange(200) % 4]
    line = np.repeat([0.0, 1.0], 100).astype(np.float32)[:, None]
    for features in (np.ones((100, 3), np.float32), one_hot, line):
        assert all(len(label) == len(features) for label in equal_share_factors(features, seed=0))


def test_what_is_erased_no_linear_map_can_tell() -> None:
    z, (gender, _) = points(np.array([[80, 40], [20, 10]]))
    weights = np.random.default_rng(1).uniform(0.5, 2, len(z))
    rest = erase(z.astype(np.float64), weights, gender)
    told = LinearRegression().fit(rest, gender, sample_weight=weights).score(rest, gender, sample_weight=weights)
    assert told < 1e-9
    assert LinearRegression().fit(z, gender).score(z, gender) > 0.9


def test_raking_makes_each_factor_even_and_keeps_to_the_cap() -> None:
    _, factors = points(np.array([[80, 40, 20], [20, 10, 12]]))
    weights = raked(factors)
    for label in factors:
        sums = np.bincount(label, weights=weights)
        assert sums / sums.sum() == pytest.approx(np.full(len(sums), 1 / len(sums)), abs=1e-9)
    rare = np.array([0] * 990 + [1] * 10)
    assert raked([rare]).max() == pytest.approx(CAP)
    assert raked([rare]).mean() == pytest.approx(1)
    assert effective(np.ones(10)) == 10
