"""The gate's statistics: against published figures, an independent solver, and simulated pairs with known drift."""

import numpy as np
import pytest
from drift_gate import draw
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from tolerances import SOLVER_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.paired import (
    ALPHA,
    Decision,
    cross_table,
    decide,
    difference_interval,
    images_needed,
    marginal_test,
    paired,
)

# Unaided distance vision of 7,477 women, right eye (rows) and left (columns): Stuart 1955, Biometrika 42, 412-416.
VISION = np.array([[1520, 266, 124, 66], [234, 1512, 432, 78], [117, 362, 1772, 205], [36, 82, 179, 492]])


def test_stuart_maxwell_as_published() -> None:
    found = marginal_test(VISION)
    assert round(found.statistic, 2) == 11.96
    assert found.degrees == 3
    assert found.p_chi2 == pytest.approx(stats.chi2.sf(found.statistic, 3))
    # The same hypothesis by another route: in large samples both p values agree within the Monte Carlo's spread.
    assert found.p == pytest.approx(found.p_chi2, abs=4 * np.sqrt(found.p_chi2 / 9999))


@pytest.mark.parametrize(("lost", "gained"), [(8, 2), (0, 5), (3, 3), (25, 10)])
def test_two_categories_are_mcnemars(lost: int, gained: int) -> None:
    found = marginal_test(np.array([[50, lost], [gained, 40]]))
    smaller = min(lost, gained)
    assert found.name == "McNemar, exact"
    assert found.p == pytest.approx(min(1.0, 2 * stats.binom.cdf(smaller, lost + gained, 0.5)))
    assert found.statistic == pytest.approx((lost - gained) ** 2 / (lost + gained))


def test_with_more_categories_p_counts_ties_and_the_table_itself() -> None:
    few = np.diag([9, 9, 9])
    few[0, 1] = few[1, 2] = 1  # whichever way the two went, the statistic is 2
    assert marginal_test(few).statistic == pytest.approx(2)
    assert marginal_test(few).p == 1
    many = np.diag([9, 9, 9])
    many[0, 1] = many[1, 2] = 200  # no draw goes as far
    assert marginal_test(many).p == 1 / 10_000


def test_categories_that_nothing_entered_or_left_count_for_nothing() -> None:
    wide = np.diag([50, 40, 7])
    wide[0, 1], wide[1, 0] = 8, 2
    assert marginal_test(wide) == marginal_test(np.array([[50, 8], [2, 40]]))
    assert marginal_test(np.diag([5, 5])).p == 1
    apart = np.diag([9, 9, 9, 9])  # 0 with 1 and 2 with 3: two questions
    apart[0, 1], apart[2, 3] = 9, 9
    assert marginal_test(apart).degrees == 2


def profile_score(gained: int, lost: int, n: int, delta: float) -> float:
    """Tango's statistic from the definition: P(lost) by direct search for the greatest likelihood."""

    def loss(q: float) -> float:
        cells = (q + delta, q, 1 - 2 * q - delta)
        return -sum(c * np.log(max(p, 1e-300)) for c, p in zip((gained, lost, n - gained - lost), cells, strict=True))

    found = optimize.minimize_scalar(loss, bounds=(max(0.0, -delta), (1 - delta) / 2), options={"xatol": 1e-12})
    return (gained - lost - n * delta) / np.sqrt(n * (2 * found.x + delta - delta**2))


@pytest.mark.parametrize(("gained", "lost", "n"), [(7, 2, 60), (30, 20, 1000), (1, 12, 100)])
def test_interval_bounds_are_where_the_score_is_z(gained: int, lost: int, n: int) -> None:
    low, high = difference_interval(gained, lost, n)
    z = stats.norm.ppf(0.95)
    assert profile_score(gained, lost, n, low) == pytest.approx(z, abs=SOLVER_ABS)
    assert profile_score(gained, lost, n, high) == pytest.approx(-z, abs=SOLVER_ABS)


@given(st.integers(1, 3000), st.data())
def test_interval_holds_the_difference_and_mirrors(n: int, data: st.DataObject) -> None:
    gained = data.draw(st.integers(0, n))
    lost = data.draw(st.integers(0, n - gained))
    low, high = difference_interval(gained, lost, n)
    assert -1 <= low <= (gained - lost) / n <= high <= 1
    assert low < high
    assert difference_interval(lost, gained, n) == pytest.approx((-high, -low), abs=SOLVER_ABS)


def test_no_change_among_few_images_is_no_proof() -> None:
    assert difference_interval(0, 0, 50)[1] == pytest.approx(
        stats.norm.ppf(0.95) ** 2 / (50 + stats.norm.ppf(0.95) ** 2)
    )
    few, enough = (decide(np.diag([n, n]), ("x", "y")) for n in (25, 50))
    assert few.decision is Decision.UNDECIDED
    assert few.n_needed == 88
    assert enough.decision is Decision.EQUIVALENT
    assert decide(np.diag([44, 44]), ("x", "y")).decision is Decision.EQUIVALENT, "as few as it said"


def test_neither_is_a_category_where_it_occurs() -> None:
    a, b = np.array(["x", "y", "z", "x"]), np.array(["x", "z", "z", "y"])
    table, names = cross_table(a, b, ("x", "y"))
    assert names == ("x", "y", "neither")
    assert table.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 1]]
    found = paired(a, b, ("x", "y"))
    assert (found.n, found.flips, found.flip_rate) == (4, 2, 0.5)
    assert [(c.lost, c.gained) for c in found.changes] == [(1, 0), (1, 1), (0, 1)]
    assert cross_table(a[:2], b[:1].repeat(2), ("x", "y"))[1] == ("x", "y")
    # Half of one group turned to rubbish: no test of the groups' ratio alone would see a fair share of both doing so.
    rubbish = decide(np.array([[400, 0, 100], [0, 400, 100], [0, 0, 0]]), ("x", "y", "neither"))
    assert rubbish.decision is Decision.DRIFT


def rates(n: int, groups: int, discordance: float, drift: float, runs: int) -> dict[Decision, float]:
    rng = np.random.default_rng([n, groups, int(1000 * discordance), int(1000 * drift)])
    names = "abcdefgh"[:groups]
    found = [decide(draw(rng, n, groups, discordance, drift), names).decision for _ in range(runs)]
    return {decision: found.count(decision) / runs for decision in Decision}


def at_most(level: float, runs: int) -> float:
    """A rate that a true rate of `level` exceeds once in a thousand."""
    return float(stats.binom.ppf(0.999, runs, level) / runs)


RUNS = 600  # benchmarks/drift_gate.py has more


@pytest.mark.parametrize("groups", [2, pytest.param(4, marks=pytest.mark.slow(reason="two groups are quick"))])
@pytest.mark.parametrize("discordance", [0.02, 0.05, 0.10])
def test_false_alarms_and_misses_stay_within_five_percent(groups: int, discordance: float) -> None:
    """False alarms at n = 300, where fewer of them are hidden by equivalence, which is asked first."""
    runs = RUNS // groups
    assert rates(300, groups, discordance, 0.0, runs)[Decision.DRIFT] <= at_most(ALPHA, runs)
    if discordance > 0.03:  # a drift as large as the margin must not pass
        assert rates(1000, groups, discordance, 0.03, runs)[Decision.EQUIVALENT] <= at_most(ALPHA, runs)


def test_what_a_thousand_pairs_show() -> None:
    assert rates(1000, 2, 0.05, 0.0, 200)[Decision.EQUIVALENT] > 0.95
    assert rates(1000, 2, 0.05, 0.05, 200)[Decision.DRIFT] > 0.99
    assert rates(1000, 4, 0.10, 0.06, 100)[Decision.DRIFT] > 0.95


@pytest.mark.parametrize(("discordance", "drift"), [(0.1, 0.0), (0.1, 0.03), (0.05, 0.01)])
def test_the_number_of_images_that_would_decide_does(discordance: float, drift: float) -> None:
    """Told the true rates, four new runs of five decide (the formula is an approximation)."""
    cells = 1000 * np.array([[1 - discordance, discordance + drift], [discordance - drift, 1 - discordance]]) / 2
    n = images_needed(np.round(cells).astype(np.int64))
    assert n > 1000 or drift == 0.01
    assert 1 - rates(n, 2, discordance, drift, 300)[Decision.UNDECIDED] > 0.74


def test_the_number_of_images_by_hand() -> None:
    """Two groups with 5 changes each way: either bound may miss, so that each has half of the 20 % of misses."""
    rate = 2 * (5 + 1) / (100 + 2)  # of changes, with one more each way
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.90)
    assert images_needed(np.array([[45, 5], [5, 45]]), 0.05) == np.ceil(z**2 * rate / 0.05**2) == 404


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": ("x",)}, "expected two or more different ones"),
        ({"groups": ("x", "x")}, "expected two or more different ones"),
        ({"groups": ("x", "neither")}, "none named neither"),
        ({"margin": 0.0}, "margin is 0.0"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"b": np.array(["x"])}, r"\[2\] labels against \[1\]"),
        ({"a": np.array([], str), "b": np.array([], str)}, "at least 1"),
    ],
)
def test_bad_input(change: dict, said: str) -> None:
    arguments = {"a": np.array(["x", "y"]), "b": np.array(["x", "y"]), "groups": ("x", "y")} | change
    with pytest.raises(DdmError, match=said):
        paired(**arguments)
