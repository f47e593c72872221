"""Attributes of drawings whose attribute is known, and the distance's interval and floor against simulation."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import norm
from tolerances import STATISTIC_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.continuous import attribute, skin_luminance, slant, variation, variations


def stroke(degrees: float, size: int = 65, background: int = 0) -> np.ndarray:
    """A line through the middle that leans to the right by `degrees`, uint8 [size,size,3]."""
    y, x = np.mgrid[:size, :size] - size // 2
    along = np.abs(x + np.tan(np.radians(degrees)) * y) < 1.5  # up is negative y
    image = np.where(along & (np.abs(y) < size // 3), 255, background).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=2)


def test_slant_of_strokes() -> None:
    angles = np.array([-30.0, -10, 0, 10, 30])
    found = slant(np.stack([stroke(angle) for angle in angles]))
    assert found == pytest.approx(angles, abs=1)  # pixels are coarse
    assert slant(stroke(20, background=60)[None])[0] == pytest.approx(slant(stroke(20)[None])[0], abs=0.1)
    together = slant(np.stack([stroke(20, background=60), stroke(20)]))
    assert together == pytest.approx(slant(stroke(20)[None]).repeat(2), abs=0.1), "each has a background of its own"
    assert np.isnan(slant(np.zeros((1, 8, 8, 3), np.uint8)))[0]


def test_skin_luminance_is_that_of_the_middle() -> None:
    face = np.full((20, 20, 3), 255, np.uint8)
    face[8:17, 6:14] = (200, 100, 50)
    face[12, 9:11] = 0  # a mouth
    assert skin_luminance(face[None])[0] == pytest.approx((0.299 * 200 + 0.587 * 100 + 0.114 * 50) / 255)
    assert skin_luminance(np.full((2, 1, 1, 3), 51, np.uint8)) == pytest.approx([0.2, 0.2])


def test_a_shift_is_its_distance() -> None:
    values = np.random.default_rng(0).normal(size=300)
    found = variation("shift", values + 2, values)
    assert found.w1 == pytest.approx(2, abs=STATISTIC_ABS)
    assert found.interval[0] < 2 < found.interval[1]
    assert found.mean - found.mean_reference == pytest.approx(2, abs=STATISTIC_ABS)
    assert variation("same", values, values).interval[0] == 0
    assert variation("again", values, values) == variation("again", values, values)


def test_values_that_are_not_there_are_counted() -> None:
    found = variation("some", np.array([1.0, np.nan, 3.0, np.nan]), np.array([np.nan, 2.0]))
    assert (found.n, found.undefined, found.n_reference, found.w1) == (2, 2, 1, 1.0)
    for values, real, side in (([np.nan], [1.0], "generated"), ([1.0], [np.nan], "reference")):
        with pytest.raises(DdmError, match=f"no {side} image has a value"):
            variation("none", np.array(values), np.array(real))


@pytest.mark.parametrize(
    ("shift", "scale"),
    [
        (0.3, 1.0),
        pytest.param(0.0, 1.0, marks=pytest.mark.slow(reason="one law is quick")),
        pytest.param(0.0, 0.5, marks=pytest.mark.slow(reason="one law is quick")),
    ],
)
def test_interval_coverage_and_floor(shift: float, scale: float) -> None:
    """W1 of two normal laws is E|shift + (scale − 1)·Z|."""
    rng = np.random.default_rng(0)
    z = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    truth = np.abs(shift + (scale - 1) * z).mean()
    covered, under = [], []
    for seed in range(60):
        values, reference = shift + scale * rng.normal(size=150), rng.normal(size=400)
        found = variation("normal", values, reference, seed, resamples=100)
        covered.append(found.interval[0] <= truth <= found.interval[1])
        under.append(found.w1 <= found.floor_p95)
    assert np.mean(covered) >= 0.9
    if truth == 0:
        assert np.mean(under) >= 0.88
    else:
        assert np.mean(under) < 0.2


def test_own_function_and_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SimpleNamespace(
        red=lambda images: images[..., 0].mean(axis=(1, 2)), two=lambda images: np.zeros((len(images), 2)), three=3
    )
    own.words, own.infinite = lambda images: ["a"] * len(images), lambda images: np.full(len(images), np.inf)
    monkeypatch.setitem(sys.modules, "own_attributes", own)
    images = np.full((3, 4, 4, 3), 9, np.uint8)
    (found,) = variations(["own_attributes:red"], images, images + 1)
    assert (found.attribute, found.w1) == ("own_attributes:red", 1.0)
    for name, said in (
        ("hue", "expected MODULE:FUNCTION, or one of: slant, skin_luminance"),
        ("own_attributes:blue", "blue"),
        ("no_such_module:f", "no_such_module"),
        (":f", "Empty module name"),
        ("own_attributes:three", "not a function"),
        ("own_attributes:two", r"gave float64 \[3, 2\]; expected a number for each image"),
        ("own_attributes:words", "expected a number for each image"),
        ("own_attributes:infinite", "gave infinite values"),
    ):
        with pytest.raises(DdmError, match=said):
            variations([name], images, images)
    assert attribute("slant") is slant
