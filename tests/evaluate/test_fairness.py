"""Scores against hand calculations, corrections against each other, intervals against their coverage."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import norm
from tolerances import SIMPLEX_ABS, STATISTIC_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate import evaluation, fairness, intervals
from ddm_rt.evaluate.intervals import bootstrap_shares, wilson

EVEN2, EVEN3 = np.full(2, 1 / 2), np.full(3, 1 / 3)


def close(value):
    return pytest.approx(value, abs=STATISTIC_ABS)


@st.composite
def simplex(draw, size):
    weights = np.array(draw(st.lists(st.floats(0, 1), min_size=size, max_size=size))) + 1e-6
    return weights / weights.sum()


@st.composite
def confusions(draw, size):
    """P(judged | truth) of a judge that is right at least 70 % of the time."""
    rows = np.stack([draw(simplex(size)) for _ in range(size)])
    return 0.7 * np.eye(size) + 0.3 * rows


def test_scores_by_hand():
    p = np.array([0.8, 0.2])
    found = fairness.scores(p, EVEN2)
    assert found.fd_l2 == close(np.sqrt(0.18))
    assert found.fd_ddm == close(0.3)
    assert found.bias_p == close(0.6)
    assert found.deviation_ratio == close(0.6)
    assert found.kl == close(0.8 * np.log(1.6) + 0.2 * np.log(0.4))
    assert found.normalised_entropy == close(-(0.8 * np.log2(0.8) + 0.2 * np.log2(0.2)))
    assert found.worst_group_ratio == close(0.4)


def test_scores_of_three_groups():
    found = fairness.scores(np.array([1.0, 0.0, 0.0]), EVEN3)
    assert found.fd_ddm is None
    assert found.fd_l2 == close(np.sqrt(6) / 3)
    assert found.bias_p == close(2 / 3)
    assert found.deviation_ratio == close(1)
    assert found.kl == close(np.log(3))
    assert (found.normalised_entropy, found.worst_group_ratio) == (close(0), close(0))


def test_target():
    u = np.array([0.25, 0.75])
    found = fairness.scores(u, u)
    assert (found.fd_l2, found.kl, found.worst_group_ratio) == (close(0), close(0), close(1))


@given(simplex(2))
def test_the_two_forms_of_fd(p):
    assert fairness.fd_l2(p, EVEN2) == close(np.sqrt(2) * fairness.scores(p, EVEN2).fd_ddm)


@given(st.integers(2, 6).flatmap(simplex))
def test_ranges(p):
    found = fairness.scores(p, np.full(len(p), 1 / len(p)))
    assert 0 <= found.deviation_ratio <= 1 + STATISTIC_ABS
    assert 0 <= found.worst_group_ratio <= 1 + STATISTIC_ABS
    assert 0 <= found.normalised_entropy <= 1 + STATISTIC_ABS
    assert found.kl >= -STATISTIC_ABS


def test_count_table():
    labels, codes = np.array(["3", "8", "1", "3", "8", "0"]), np.array([5, 2, 2, 5, 5, 7])
    assert fairness.count_table(labels, ["3", "8"]).tolist() == [[2, 2]]
    assert fairness.count_table(labels, ["3", "8"], codes).tolist() == [[0, 1], [2, 1], [0, 0]]
    for groups in (["3"], ["3", "3"]):
        with pytest.raises(DdmError, match="groups"):
            fairness.count_table(labels, groups)
    with pytest.raises(DdmError, match="codes"):
        fairness.count_table(labels, ["3", "8"], codes[:2])
    with pytest.raises(DdmError, match="no image"):
        fairness.shares(np.zeros(2, np.int64), ["3", "8"])


def test_spd():
    wanted = np.array(["a", "a", "a", "a", "b", "b"])
    matches = np.array([1, 1, 1, 0, 1, 0], bool)
    found, (low, high) = fairness.spd(matches, wanted, ["a", "b"])
    assert found == close(0.25)
    # Newcombe 1998, method 10, from both Wilson intervals.
    (l0, u0), (l1, u1) = wilson(3, 4), wilson(1, 2)
    assert (low, high) == (close(0.25 - np.hypot(0.75 - l0, u1 - 0.5)), close(0.25 + np.hypot(u0 - 0.75, 0.5 - l1)))
    assert fairness.spd(matches, wanted, ["b", "a"])[0] == close(-0.25)
    with pytest.raises(DdmError, match="'c'"):
        fairness.spd(matches, wanted, ["a", "b", "c"])
    three = np.array(["a", "a", "a", "a", "b", "c"])
    found, (low, high) = fairness.spd(matches, three, ["a", "b", "c"])
    assert found == close(1)
    assert 0 <= low < 1 == high


@pytest.mark.parametrize("rates", [(0.9, 0.8), (0.5, 0.5), (0.95, 0.95, 0.7), (0.9, 0.9, 0.9)])
def test_spd_interval_coverage(rates):
    groups = list("abc")[: len(rates)]
    wanted = np.repeat(groups, 60)
    rng = np.random.default_rng(0)
    truth = rates[0] - rates[1] if len(rates) == 2 else max(rates) - min(rates)
    covered = 0
    for _ in range(300):
        _, (low, high) = fairness.spd(rng.random(len(wanted)) < np.repeat(rates, 60), wanted, groups)
        covered += low <= truth <= high
    assert covered / 300 >= 0.92


@given(st.floats(0, 1), st.floats(0.6, 1), st.floats(0.6, 1))
def test_cleam_inverts_the_judge(p, a0, a1):
    assert fairness.cleam(p * a0 + (1 - p) * (1 - a1), a0, a1) == close(p)


def test_cleam_stays_a_share_and_refuses_chance():
    assert fairness.cleam(0.0, 0.9, 0.9) == 0
    assert fairness.cleam(1.0, 0.9, 0.9) == 1
    with pytest.raises(DdmError, match="chance"):
        fairness.cleam(0.5, 0.6, 0.4)


@given(st.integers(2, 5).flatmap(lambda size: st.tuples(simplex(size), confusions(size))))
def test_correction_inverts_the_judge(case):
    p, conditional = case
    assert fairness.correct(conditional.T @ p, conditional) == pytest.approx(p, abs=SIMPLEX_ABS)


@given(simplex(2), confusions(2))
def test_inversion_for_two_groups_is_cleam(p, conditional):
    """A third group that never occurs and is never confused leaves the two-group problem as it is."""
    padded = np.eye(3)
    padded[:2, :2] = conditional
    expected = fairness.correct(p, conditional)
    assert fairness.correct(np.append(p, 0.0), padded)[:2] == pytest.approx(expected, abs=SIMPLEX_ABS)


@given(simplex(3), confusions(3))
def test_inversion_is_the_constrained_minimum(p, conditional):
    found = fairness.correct(p, conditional)
    assert found.min() >= 0
    assert found.sum() == close(1)

    def error(x):
        return float(((conditional.T @ x - p) ** 2).sum())

    best = minimize(
        error,
        np.full(3, 1 / 3),
        method="SLSQP",
        bounds=[(0, 1)] * 3,
        constraints={"type": "eq", "fun": lambda x: x.sum() - 1},
    )
    assert error(found) <= error(best.x) + SIMPLEX_ABS


def test_group_confusion():
    counts = np.array([[90, 5, 5], [0, 50, 50], [0, 0, 0]])
    found = fairness.group_confusion(counts, ["0", "3", "8"], ["3", "0"])
    assert found.tolist() == [[50, 0], [5, 90]]
    assert fairness.conditional(found).tolist() == [[1, 0], [5 / 95, 90 / 95]]
    with pytest.raises(DdmError, match="9 unknown"):
        fairness.group_confusion(counts, ["0", "3", "8"], ["3", "9"])
    with pytest.raises(DdmError, match="held-out"):
        fairness.group_confusion(counts, ["0", "3", "8"], ["3", "8"])
    mixed = np.array([[80, 10, 10], [10, 80, 10], [45, 45, 10]])  # the third is judged as any of the others
    with pytest.raises(DdmError, match="don't tell a, b, c apart"):
        fairness.group_confusion(np.array([[80, 10, 10], [10, 80, 10], [90, 90, 20]]), list("abc"), list("abc"))
    assert fairness.group_confusion(mixed, list("abc"), ["a", "b"]).tolist() == [[80, 10], [10, 80]]


def test_confusion_draws_are_the_posterior():
    """Row by row Dirichlet(counts + ½): mean and variance as that law has them."""
    counts = np.array([[48, 1, 1], [0, 20, 0], [3, 3, 94]])
    draws = fairness.confusion_draws(counts, draws=20_000, seed=0)
    assert draws.shape == (20_000, 3, 3)
    assert draws.sum(axis=2) == pytest.approx(np.ones((20_000, 3)), abs=SIMPLEX_ABS)
    alpha = counts + 0.5
    total = alpha.sum(axis=1, keepdims=True)
    mean = alpha / total
    spread = np.sqrt(mean * (1 - mean) / (total + 1))
    assert np.abs(draws.mean(axis=0) - mean).max() < 5 * spread.max() / np.sqrt(20_000)
    assert draws.std(axis=0) == pytest.approx(spread, rel=0.05)


@pytest.mark.parametrize(
    "truth",
    [pytest.param((0.5, 0.5), marks=pytest.mark.slow(reason="three groups show it")), (0.2, 0.3, 0.5)],
)
def test_corrected_intervals_hold_the_judges_own_error(truth):
    """A judge known from 40 images a group: intervals hold the truth, and those without its error often don't."""
    truth, size = np.array(truth), len(truth)
    accuracy = np.full((size, size), 0.2 / (size - 1))
    np.fill_diagonal(accuracy, 0.8)
    rng = np.random.default_rng(size)
    names, held, narrow, runs = list("abc")[:size], 0, 0, 60
    for _ in range(runs):
        confusion = np.stack([rng.multinomial(40, row) for row in accuracy])
        judge = SimpleNamespace(confusion=confusion, classes=names)
        strata = rng.multinomial(2000, truth @ accuracy)[None]
        _, corrected = evaluation._balances(strata, judge, names, np.full(size, 1 / size), seed=0)
        held += corrected.intervals[0][0] <= truth[0] <= corrected.intervals[0][1]
        known = fairness.conditional(confusion)
        draws = bootstrap_shares(strata, seed=0, resamples=200)
        low, high = np.quantile([fairness.invert(draw, known)[0] for draw in draws], [0.025, 0.975])
        narrow += low <= truth[0] <= high
    assert held / runs >= 0.88
    assert narrow / runs < 0.75, "the judge's error matters here"


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(case):
    """A bound is the share that lies z of its own standard errors from the measured one (Wilson 1927)."""
    (count, n), z = case, norm.ppf(0.975)
    low, high = intervals.wilson(count, n)
    assert 0 <= low <= count / n <= high <= 1
    for bound in (low, high):
        assert (count / n - bound) ** 2 == close(z**2 * bound * (1 - bound) / n)
    assert (low == 0, high == 1) == (count == 0, count == n)


def test_wilson_refuses():
    for count, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(DdmError, match="share"):
            intervals.wilson(count, n)


strata = st.lists(
    st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1, max_size=12
)


@given(strata)
def test_stratified_holds_the_share_and_has_width(rows):
    counts, sizes = np.array(rows).T
    low, high = intervals.stratified(counts, sizes)
    assert 0 <= low <= counts.sum() / sizes.sum() <= high <= 1
    assert low < high


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_one_stratum_is_wilson(case):
    found = intervals.stratified(*(np.array([value, 0]) for value in case))
    assert found == tuple(close(bound) for bound in intervals.wilson(*case))


def test_quota_narrows_the_interval():
    pure = intervals.stratified(np.array([500, 0]), np.array([500, 500]))
    mixed = intervals.stratified(np.array([250, 250]), np.array([500, 500]))
    assert pure[1] - pure[0] < 0.2 * (mixed[1] - mixed[0])


@pytest.mark.parametrize("p", [[1.0, 0.0], [0.98, 0.03], [0.99, 0.9, 0.5, 0.02], [0.97] * 8 + [0.05] * 8])
def test_stratified_coverage(p):
    """Nominal 95 %; pure and nearly pure codes err on the wide side."""
    rng, size, p = np.random.default_rng(0), 60, np.array(p)
    sizes = np.full(len(p), size)
    draws = rng.binomial(size, p, size=(400, len(p)))
    bounds = np.array([intervals.stratified(draw, sizes) for draw in draws])
    assert ((bounds[:, 0] <= p.mean()) & (p.mean() <= bounds[:, 1])).mean() >= 0.93


@pytest.mark.parametrize(
    ("p", "size"),
    [
        ([[0.5, 0.5]], 400),  # on target: FD is 0, where percentiles of FD would never reach
        ([[0.8, 0.2]], 400),
        ([[1.0, 0.0], [0.0, 1.0]], 50),  # pure codes: a plain bootstrap has no width
        ([[0.6, 0.3, 0.1]], 300),
        ([[0.9, 0.1, 0.0], [0.0, 0.95, 0.05], [0.02, 0.0, 0.98]], 60),
    ],
)
def test_fd_interval_coverage(p, size):
    rng, p = np.random.default_rng(1), np.array(p)
    target = np.full(p.shape[1], 1 / p.shape[1])
    truth = fairness.fd_l2(p.mean(axis=0), target)
    covered = []
    for i in range(200):
        table = np.stack([rng.multinomial(size, row) for row in p])
        draws = intervals.bootstrap_shares(table, seed=i, resamples=400)
        low, high = intervals.fd_interval(table.sum(axis=0) / table.sum(), draws, target)
        assert low < high
        covered.append(low - STATISTIC_ABS <= truth <= high + STATISTIC_ABS)
    assert np.mean(covered) >= 0.92


@pytest.mark.parametrize(
    ("table", "at", "bound"),
    [([[400, 400]], 0, 0.0), ([[9, 0]], 1, np.sqrt(1 / 2)), ([[9, 0, 0]], 1, np.sqrt(2 / 3))],
    ids=["on target", "one of two groups alone", "one of three groups alone"],
)
def test_fd_interval_stays_within_what_can_be(table, at, bound):
    table = np.array(table)
    target = np.full(table.shape[1], 1 / table.shape[1])
    draws = intervals.bootstrap_shares(table, seed=0, resamples=400)
    found = intervals.fd_interval(table[0] / table.sum(), draws, target)
    assert found[at] == close(bound)
    assert found[1] - found[0] > 0.01


@given(st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3), min_size=1, max_size=5), st.integers(0, 9))
def test_bootstrap_draws_are_shares_and_repeat(rows, seed):
    table = np.array(rows)
    if table.sum() == 0:
        with pytest.raises(DdmError, match="no images"):
            intervals.bootstrap_shares(table, seed=seed, resamples=5)
        return
    draws = intervals.bootstrap_shares(table, seed=seed, resamples=5)
    assert draws.shape == (5, 3)
    assert draws.min() >= 0
    assert draws.sum(axis=1) == close(np.ones(5))
    assert np.array_equal(draws, intervals.bootstrap_shares(table, seed=seed, resamples=5))


@pytest.mark.parametrize("table", [[[45, 5]], [[30, 10], [2, 8]], [[12, 5, 3]]])
def test_bootstrap_draws_centre_on_the_shares(table):
    table = np.array(table)
    shares, n = table.sum(axis=0) / table.sum(), table.sum()
    draws = intervals.bootstrap_shares(table, seed=0, resamples=20_000)
    assert np.abs(draws.mean(axis=0) - shares).max() < 5 * np.sqrt(0.25 / n / 20_000)


@pytest.mark.parametrize(("n", "mean", "p95"), [(100, 0.040, 0.100), (500, 0.018, 0.044), (1000, 0.013, 0.031)])
def test_noise_floor_of_two_groups(n, mean, p95):
    floor = intervals.noise_floor(n, EVEN2)
    assert (round(floor.share_mean[0], 3), round(floor.share_p95[0], 3)) == (mean, p95)
    assert floor.fd_l2_p95 == close(np.sqrt(2) * floor.share_p95[0])


def test_noise_floor_of_more_groups():
    floor = intervals.noise_floor(200, EVEN3)
    # E‖p − u‖² = Σ u(1−u)/n exactly; the mean of the norm lies a little below its root.
    root = np.sqrt((EVEN3 * (1 - EVEN3)).sum() / 200)
    assert 0.85 * root < floor.fd_l2_mean < root < floor.fd_l2_p95
    assert floor == intervals.noise_floor(200, EVEN3)
    assert len(floor.share_p95) == 3


def test_noise_floor_of_one_image():
    assert intervals.noise_floor(1, EVEN2).share_mean[0] == close(0.5)
    with pytest.raises(DdmError, match="n is 0"):
        intervals.noise_floor(0, EVEN2)
