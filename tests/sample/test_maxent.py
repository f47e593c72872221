"""Weights that reach a target: maximum entropy, against closed forms and by its defining property."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SHARE_ABS, SOLVED_SHARE_ABS

from ddm_rt.sample.calibration.tilt import effective_number, tilt


def test_two_pure_codes_get_the_target_itself() -> None:
    found = tilt(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([0.3, 0.7]), np.array([0.9, 0.1]))
    assert found.weights == pytest.approx([0.3, 0.7], abs=SOLVED_SHARE_ABS)


def test_a_target_that_is_met_already_changes_nothing() -> None:
    p, base = np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), np.array([0.2, 0.5, 0.3])
    assert tilt(p, base @ p, base).weights == pytest.approx(base, abs=SHARE_ABS)


def test_a_code_without_base_weight_stays_out() -> None:
    p = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found = tilt(p, np.array([0.5, 0.5]), np.array([0.5, 0.5, 0.0]))
    assert found.reached
    assert found.weights[2] == 0


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(2, 4))
def test_any_target_inside_is_reached_by_the_nearest_weights(seed: int, num_codes: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(groups), num_codes) * 0.9 + 0.1 / groups
    base, other = rng.dirichlet(np.ones(num_codes), 2) * 0.9 + 0.1 / num_codes
    found = tilt(p, other @ p, base)
    assert found.reached

    def divergence(weights: np.ndarray) -> float:
        used = weights > 0
        return float(np.sum(weights[used] * np.log(weights[used] / base[used])))

    # `other` gives the same shares: the nearest weights are no further from the base than it, nor than any between.
    for part in (0.01, 0.5, 1.0):
        assert divergence(found.weights) <= divergence((1 - part) * found.weights + part * other) + SOLVED_SHARE_ABS


def test_two_attributes_at_once() -> None:
    gender = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.3, 0.7]])
    race = np.array([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.1, 0.9]])
    found = tilt(np.hstack([gender, race]), np.array([0.5, 0.5, 0.4, 0.6]), np.full(4, 0.25))
    assert found.reached
    assert found.shares == pytest.approx([0.5, 0.5, 0.4, 0.6], abs=SOLVED_SHARE_ABS)


def test_a_target_outside_is_not_reached_but_has_nearest_weights() -> None:
    p = np.array([[0.1, 0.9], [0.2, 0.8], [0.4, 0.6]])
    for slack in (0.0, 1e-3):
        found = tilt(p, np.array([0.7, 0.3]), np.full(3, 1 / 3), slack)
        assert not found.reached
        assert found.weights == pytest.approx([0, 0, 1], abs=SHARE_ABS)


def test_slack_stays_short_of_the_target() -> None:
    """With two groups the weights are ∝ exp(2·p·u), and u solves share(u) + slack·u = target."""
    p, target, slack = np.array([0.8, 0.5, 0.3]), 0.6, 1e-3

    def share(u: float) -> float:
        mass = np.exp(2 * p * u)
        return float(mass @ p / mass.sum())

    low, high = 0.0, 10.0
    for _ in range(60):
        u = (low + high) / 2
        low, high = (u, high) if share(u) + slack * u < target else (low, u)
    found = tilt(np.stack([p, 1 - p], 1), np.array([target, 1 - target]), np.full(3, 1 / 3), slack)
    assert found.shares == pytest.approx([share(u), 1 - share(u)], abs=SOLVED_SHARE_ABS)
    assert share(u) < target - 5e-4


def test_effective_numbers() -> None:
    assert effective_number(np.array([0.25, 0.25, 0.25, 0.25])) == pytest.approx(4)
    assert effective_number(np.array([1.0, 0.0])) == 1
    # Weights in proportion to the sizes use every training image alike.
    assert effective_number(np.array([0.2, 0.8]), np.array([10.0, 40.0])) == pytest.approx(50)
    assert effective_number(np.array([0.5, 0.5]), np.array([10.0, 0.0])) == 0
