"""Calibration error and probes on data whose answer is known."""

import numpy as np
import pytest
from bench_parts.probes import calibration_error, linear_probe, smooth_ece
from tolerances import STATISTIC_ABS

from ddm_rt.errors import DdmError


def test_calibration_error_by_hand() -> None:
    """Two bins of two: .9 says, .5 right; .6 says, all right."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    found = calibration_error(probabilities, np.array([0, 1, 0, 1]))
    assert found.ece == pytest.approx(0.5 * 0.4 + 0.5 * 0.4, abs=STATISTIC_ABS)
    assert (found.n, found.accuracy, found.confidence) == (4, 0.75, pytest.approx(0.75))
    assert [(b.n, b.accuracy) for b in found.bins] == [(2, 1.0), (2, 0.5)]
    assert calibration_error(np.eye(2), np.array([0, 1])).ece == 0


def test_the_surest_predictions_are_in_the_last_bin() -> None:
    found = calibration_error(np.eye(2), np.array([0, 0]))
    assert [(b.n, b.confidence, b.accuracy) for b in found.bins] == [(2, 1.0, 0.5)]
    assert found.ece == 0.5


@pytest.mark.parametrize("sharpening", [1.0, 3.0])
def test_a_classifier_that_says_what_it_knows_is_at_the_floor(sharpening: float) -> None:
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(4), size=600)
    truth = np.array([rng.choice(4, p=row) for row in honest])
    claimed = honest**sharpening / (honest**sharpening).sum(axis=1, keepdims=True)
    found = calibration_error(claimed, truth)
    assert (found.ece <= found.floor_p95) == (sharpening == 1)
    assert found.floor_mean < found.floor_p95


def test_linear_probe_reads_what_is_there_and_no_more() -> None:
    rng = np.random.default_rng(0)
    labels = ["a"] * 150 + ["b"] * 50
    informed = rng.normal(size=(200, 3)) + 4 * (np.array(labels) == "b")[:, None]
    found = linear_probe(informed, labels)
    assert found.accuracy > 0.97
    assert found.interval[0] <= found.accuracy <= found.interval[1]
    assert (found.n, found.dimensions, found.chance) == (200, 3, 0.75)
    blind = linear_probe(rng.normal(size=(200, 3)), labels)
    assert blind.balanced_accuracy < 0.6
    codes = np.eye(3)[[0] * 140 + [1] * 10 + [2] * 50]
    assert linear_probe(codes, labels).accuracy == 1


def test_one_image_of_each_label_in_each_fold_is_enough() -> None:
    found = linear_probe(np.eye(2)[[0] * 5 + [1] * 5], ["a"] * 5 + ["b"] * 5, folds=5)
    assert (found.n, found.accuracy) == (10, 1)


@pytest.mark.parametrize(
    ("probabilities", "truth", "said"),
    [
        (np.ones((2, 2)) / 2, [0], r"\[2, 2\] and \[1\]"),
        (np.ones((0, 2)), [], "N at least 1"),
        (np.ones((1, 2)), [0], "must sum to 1"),
        (np.array([[1.5, -0.5]]), [0], "must not be negative"),
        (np.array([[np.nan, 1.0]]), [0], "must not be negative"),
        (np.ones((1, 2)) / 2, [2], "expected columns 0 to 1"),
    ],
)
def test_bad_probabilities(probabilities: np.ndarray, truth: list, said: str) -> None:
    with pytest.raises(DdmError, match=said):
        calibration_error(probabilities, np.array(truth, np.int64))


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (np.ones((4, 1)), ["a"] * 4),
        (np.ones((6, 1)), ["a"] * 4 + ["b"] * 2),
        (np.full((10, 1), np.nan), list("ab") * 5),
    ],
)
def test_bad_features(features: np.ndarray, labels: list[str]) -> None:
    with pytest.raises(DdmError, match="probe: "):
        linear_probe(features, labels)


def test_smooth_ece_of_one_confidence_is_its_gap_and_of_a_calibrated_one_is_small() -> None:
    rng = np.random.default_rng(0)
    right = np.arange(1000) % 10 < 6
    assert smooth_ece(np.full(1000, 0.8), right) == pytest.approx(0.2, abs=0.01)
    said = rng.random(20_000)
    assert smooth_ece(said, rng.random(20_000) < said) < 0.02
