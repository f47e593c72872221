"""p(group | code): its bounds against scipy, and what the bounds promise."""

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import minimize
from tolerances import SIMPLEX_ABS, STATISTIC_ABS

from ddm_rt.sample.calibration import posterior


@pytest.mark.parametrize("row", [(0, 0), (0, 9), (4, 0), (1, 10), (100, 3), (0, 300), (900, 800), (0, 0, 5, 70)])
def test_bounds_are_quantiles_of_beta_distributions(row: tuple[int, ...]) -> None:
    a = np.array(row) + 0.5
    for q, found in zip((0.05, 0.95), posterior.bounds(np.array([row])), strict=True):
        assert found[0] == pytest.approx(stats.beta.ppf(q, a, a.sum() - a), abs=STATISTIC_ABS)


def test_means_variances_and_bounds_are_those_of_the_posterior() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0]])
    alpha = counts + 0.5
    posteriors = [stats.dirichlet(row) for row in alpha]
    assert posterior.mean(counts) == pytest.approx(np.array([d.mean() for d in posteriors]))
    assert posterior.variance(counts) == pytest.approx(np.array([d.var() for d in posteriors]))
    low, high = posterior.bounds(counts)
    rest = alpha.sum(1, keepdims=True) - alpha
    assert low == pytest.approx(stats.beta.ppf(0.05, alpha, rest), abs=STATISTIC_ABS)
    assert high == pytest.approx(stats.beta.ppf(0.95, alpha, rest), abs=STATISTIC_ABS)


def test_extremes_are_the_best_bounds_that_a_mixture_has() -> None:
    counts = np.array([[6, 0], [0, 6], [5, 1], [1, 3], [4, 0], [0, 2], [3, 3], [1, 0]])
    p, spread = posterior.mean(counts)[:, 0], posterior.variance(counts)[:, 0]
    sums_to_one = {"type": "eq", "fun": lambda w: w.sum() - 1}
    start = np.full(8, 1 / 8)

    def bound(sign: float) -> float:
        def value(w: np.ndarray) -> float:
            return float(-sign * (p @ w) + posterior.Z90 * np.sqrt((w**2 * spread).sum()))

        options = {"ftol": 1e-14, "maxiter": 500}
        return -sign * minimize(value, start, bounds=[(0, 1)] * 8, constraints=sums_to_one, options=options).fun

    expected = [bound(-1), bound(1)]
    assert posterior.extremes(p, spread, start) == pytest.approx(expected, abs=SIMPLEX_ABS)


def test_codes_that_tell_nothing_reach_what_they_give_and_no_more() -> None:
    counts = np.full((4, 2), 3)
    low, high = posterior.extremes(posterior.mean(counts)[:, 0], posterior.variance(counts)[:, 0], np.full(4, 0.25))
    assert (low, high) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("per_code", [2, 4, 16])
def test_what_is_called_in_reach_is(per_code: int) -> None:
    """Over random codes the true extremes lie beyond the bounds in at least 90 % of cases."""
    rng, inside, cases = np.random.default_rng(2), 0, 400
    for _ in range(cases):
        truth = rng.beta(0.5, 0.5, 16)
        ones = rng.binomial(per_code, truth)
        counts = np.stack([ones, per_code - ones], axis=1)
        low, high = posterior.extremes(
            posterior.mean(counts)[:, 0], posterior.variance(counts)[:, 0], np.full(16, 1 / 16)
        )
        inside += truth.min() <= low and high <= truth.max()
    assert inside >= 0.9 * cases


def test_the_prior_is_fitted_to_how_pure_the_codes_are() -> None:
    pure = np.array([[6, 0], [0, 6]] * 8)
    even = np.array([[3, 3]] * 16)
    assert posterior.fitted_prior(pure) < 0.1
    assert posterior.fitted_prior(even) == posterior.PRIOR
    assert posterior.fitted_prior(np.eye(2, dtype=int)) == posterior.PRIOR, "one image a code tells nothing"
    assert posterior.fitted_prior(np.zeros((3, 2), int)) == posterior.PRIOR
