"""The calibration study on made-up codes: its errors are those of the weights, and they fall with more audits."""

import numpy as np
import pytest
from calibration_parts.pool import thickness
from calibration_parts.study import ESTIMATORS, Codes, audits, uncalibrated


def codes() -> Codes:
    rng = np.random.default_rng(0)
    p = np.array([0.95, 0.9, 0.8, 0.7, 0.3, 0.1, 0.05, 0.5])
    pool, truth = (np.where(rng.random((8, 400)) < p[:, None], 0, 1) for _ in range(2))
    return Codes(pool, truth, {"slant": np.arange(8.0)}, np.full(8, 10.0), np.full(8, 1 / 8), ("a", "b"))


def test_errors_fall_with_more_audits() -> None:
    few, many = (audits(codes(), 0.3, n, "half by weights", next(iter(ESTIMATORS)), 40) for n in (16, 256))
    assert many["error"] < few["error"] / 2
    assert many["error"] < uncalibrated(codes(), 0.3)["error"] / 4
    assert many["refused"] == 0
    assert few["error_p90"] >= few["error"]


def test_the_uniform_target_is_measured_as_it_is() -> None:
    figures = uncalibrated(codes(), 0.5)
    assert figures["error"] == pytest.approx(abs((codes().truth == 0).mean() - 0.5))
    assert figures["effective_codes"] == pytest.approx(8)
    assert figures["effective_images"] == pytest.approx(80)
    assert figures["slant"] == pytest.approx(3.5)


def test_thickness_is_the_width_of_a_stroke() -> None:
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[:, 2:62, 30:36] = 255  # 60 long, 6 wide: twice the ink over the outline is 2·360/132
    assert thickness(image)[0] == pytest.approx(2 * 360 / 132, rel=0.02)
