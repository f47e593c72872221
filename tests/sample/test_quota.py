"""Quotas: Tijdeman's bound on every prefix, the tree, state, and bad input."""

import contextlib
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.quota import DENOMINATOR, SUM_TOLERANCE, Quota, TreeQuota, parse_target, quantise


@st.composite
def shares(draw: st.DrawFn, largest: int = 32) -> list[float]:
    """Weights that sum to 1, with zeros, ties, tiny and irrational-looking ones among them."""
    raw = draw(
        st.lists(
            st.one_of(
                st.just(0.0), st.just(1.0), st.floats(1e-12, 1), st.sampled_from([math.pi, math.sqrt(2), 1e-9, 1 / 3])
            ),
            min_size=1,
            max_size=largest,
        ).filter(any)
    )
    return [value / math.fsum(raw) for value in raw]


def assert_bound_on_every_prefix(quota: Quota, n: int) -> None:
    """Exactly, against the quantised weights: |x_k - nλ_k| ≤ 1 - 1/(2K - 2)."""
    limit = quota.bound * DENOMINATOR
    counts = [0] * len(quota.weights)
    for j in range(1, n + 1):
        counts[quota.draw()] += 1
        assert max(abs(c * DENOMINATOR - j * w) for c, w in zip(counts, quota.weights, strict=True)) <= limit
    assert counts == quota.counts


def assert_bound(quota: Quota, drawn: list[int]) -> None:
    """As above, over all prefixes of fewer than 2^15 draws at once: everything stays below 2^63."""
    counts = np.cumsum(np.array(drawn)[:, None] == np.arange(len(quota.weights)), axis=0)  # [n, K]
    lag = np.arange(1, len(drawn) + 1)[:, None] * np.array(quota.weights) - counts * DENOMINATOR
    assert np.abs(lag).max() <= quota.bound * DENOMINATOR


def tijdeman(whole: list[int], n: int) -> list[int]:
    """The first n draws, from the paper's conditions: of the indices that may be drawn already, the one that must be
    drawn soonest; of several, the first. Index k may be drawn from j·λ_k - x_k ≥ 1/(2K - 2) on, and must be by
    (x_k + 1 - 1/(2K - 2)) / λ_k. All in whole numbers: both sides times 2K - 2, and λ_k times DENOMINATOR.
    """
    weights = {k: weight for k, weight in enumerate(whole) if weight}
    parts = 2 * len(weights) - 2
    counts, drawn = dict.fromkeys(weights, 0), list[int]()
    for j in range(1, n + 1):
        first, soonest = -1, 0
        for k, weight in weights.items():
            if parts and parts * (j * weight - counts[k] * DENOMINATOR) < DENOMINATOR:
                continue
            due = parts * (counts[k] + 1) - 1  # over weight
            if first < 0 or due * weights[first] < soonest * weight:
                first, soonest = k, due
        drawn.append(first)
        counts[first] += 1
    return drawn


def check_stream(weights: list[float], requests: list[int]) -> None:
    """The bound on every prefix; and requests of any sizes get what the paper's conditions say."""
    quota = Quota(weights)
    drawn = [code for size in requests for code in quota.assign(size)]
    assert_bound(quota, drawn)
    assert drawn == tijdeman(quota.weights, len(drawn))


streams = {"weights": shares(12), "requests": st.lists(st.sampled_from([1, 1, 1, 2, 3, 16]), min_size=1, max_size=12)}


@settings(max_examples=400, deadline=None)
@given(**streams)
def test_bound_on_every_prefix(weights: list[float], requests: list[int]) -> None:
    check_stream(weights, requests)


@pytest.mark.slow(reason="10,000 targets and streams that hypothesis looks for take a minute")
@settings(max_examples=10_000, deadline=None)
@given(**streams)
def test_bound_on_every_prefix_of_10_000_streams(weights: list[float], requests: list[int]) -> None:
    check_stream(weights, requests)


@pytest.mark.slow(reason="90,000 more, drawn at random, take minutes")
def test_bound_on_every_prefix_of_90_000_random_streams() -> None:
    """Weights and requests of the same kinds. numpy draws them ten times as fast as hypothesis."""
    rng = np.random.default_rng(0)
    special = [0.0, 1.0, math.pi, math.sqrt(2), 1e-9, 1 / 3]
    for _ in range(90_000):
        k = int(rng.integers(1, 13))
        raw = np.where(rng.random(k) < 0.5, rng.choice(special, k), rng.uniform(1e-12, 1, k))
        if raw.any():
            weights = [float(value) / math.fsum(raw) for value in raw]
            check_stream(weights, [int(n) for n in rng.choice([1, 1, 1, 2, 3, 16], rng.integers(1, 13))])


@settings(max_examples=100, deadline=None)
@given(weights=shares(), n=st.integers(1, 300))
def test_bound_on_long_streams(weights: list[float], n: int) -> None:
    assert_bound_on_every_prefix(Quota(weights), n)


def test_bound_over_thousands_of_targets() -> None:
    """The same, vectorised over prefixes: 2,000 targets of 2 to 32 codes, 200 draws each."""
    rng = np.random.default_rng(0)
    for _ in range(2000):
        k = int(rng.integers(2, 33))
        weights = rng.dirichlet(np.full(k, rng.choice([0.05, 0.3, 1.0, 20.0])))
        quota = Quota([float(w) for w in weights / weights.sum()])
        assert_bound(quota, quota.assign(200))


@pytest.mark.parametrize("k", range(2, 9))
def test_bound_over_all_small_fractions(k: int) -> None:
    for denominator in range(k, 13):
        first = [Fraction(1, denominator)] * (k - 1)
        weights = [*first, 1 - sum(first)]
        assert_bound_on_every_prefix(Quota([float(w) for w in weights]), 2 * denominator)


def test_an_index_that_is_just_due_is_drawn_and_the_first_of_equals() -> None:
    assert Quota([1 / 8, 2 / 8, 5 / 8]).assign(8) == [2, 2, 1, 2, 0, 2, 1, 2]
    assert Quota([0.5, 0.5]).assign(4) == [0, 1, 0, 1]


def test_uniform_shares_come_in_full_rounds() -> None:
    for k in (1, 2, 3, 5, 8):
        quota = Quota([1 / k] * k)
        for turn in range(1, 6):
            quota.assign(k)
            assert quota.counts == [turn] * k


@given(weights=shares())
@settings(deadline=None)
def test_quantised_weights(weights: list[float]) -> None:
    whole = quantise(weights, "weights")
    assert sum(whole) == DENOMINATOR
    total = sum(map(Fraction, weights))
    for weight, integer in zip(weights, whole, strict=True):
        assert abs(integer - Fraction(weight) / total * DENOMINATOR) < 1
        assert integer == 0 or weight > 0


def test_zero_weight_is_never_drawn() -> None:
    assert set(Quota([0.0, 0.7, 0.0, 0.3]).assign(1000)) == {1, 3}
    assert Quota([0.0, 1.0]).assign(5) == [1] * 5


@settings(max_examples=50, deadline=None)
@given(weights=shares(8), before=st.integers(0, 60))
def test_a_restored_quota_goes_on_where_it_stopped(weights: list[float], before: int) -> None:
    quota = Quota(weights)
    quota.assign(before)
    restored = Quota(weights)
    restored.restore(quota.counts)
    assert restored.assign(60) == quota.assign(60)
    assert restored.counts == quota.counts


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([1.0], [-1]),
        ([1.0], [0.5]),
        ([1.0], [True]),
        ([1.0], [0, 0]),
        ([0.5, 0.5], [5, 1]),
        ([0.5, 0.5], [1, 3]),
        ([1.0, 0.0], [4, 1]),
    ],
)
def test_impossible_counts_are_refused(weights: list[float], counts: list[int]) -> None:
    quota = Quota(weights)
    with pytest.raises(DdmError, match="counts"):
        quota.restore(counts)
    assert quota.assign(3) == Quota(weights).assign(3)


def test_a_restored_tree_goes_on_where_it_stopped() -> None:
    def tree() -> TreeQuota:
        return TreeQuota([0.3, 0.7], [{4: 0.25, 2: 0.75}, {0: 0.6, 3: 0.0, 1: 0.4}])

    quota, restored = tree(), tree()
    quota.assign(41)
    assert sum(quota.counts.values()) == 41
    restored.restore(quota.counts)
    assert restored.assign(50) == quota.assign(50)
    for counts in ({0: 1}, dict.fromkeys(range(6), 0), {0: 2, 1: 0, 2: 0, 3: 0, 4: 0}, {0: 0, 1: 0, 2: 0, 3: 1, 4: 0}):
        with pytest.raises(DdmError, match="counts"):
            tree().restore(counts)


@pytest.mark.parametrize("weights", [[], [-0.1, 1.1], [float("nan"), 1.0], [float("inf")], [0.5, 0.4], [0.0, 0.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(DdmError, match="shares of group"):
        Quota(weights, "shares of group")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), top=shares(5), n=st.integers(1, 50))
def test_tree_keeps_its_three_bounds(data: st.DataObject, top: list[float], n: int) -> None:
    code = 0
    tree: list[dict[int, float]] = []
    for _ in top:
        parts = data.draw(shares(5))
        tree.append({code + i: share for i, share in enumerate(parts)})
        code += len(parts)
    quota = TreeQuota(top, tree)
    tops: Counter[int] = Counter()
    codes: Counter[int] = Counter()
    for j in range(1, n + 1):
        drawn, branch = quota.draw()
        assert drawn in tree[branch]
        tops[branch] += 1
        codes[drawn] += 1
        for k, leaf in enumerate(quota.leaves):
            weight = Fraction(quota.top.weights[k], DENOMINATOR)
            assert abs(tops[k] - j * weight) <= quota.top.bound
            for code, quantised in zip(quota.codes[k], leaf.weights, strict=True):
                share = Fraction(quantised, DENOMINATOR)
                assert abs(codes[code] - tops[k] * share) <= leaf.bound
                assert abs(codes[code] - j * weight * share) <= leaf.bound + share * quota.top.bound < 2


def test_tree_refuses_what_does_not_fit() -> None:
    with pytest.raises(DdmError, match="top codes"):
        TreeQuota([1.0], [])
    with pytest.raises(DdmError, match="top code 1"):
        TreeQuota([0.5, 0.5], [{0: 1.0}, {}])
    with pytest.raises(DdmError, match="branch"):
        TreeQuota([0.5, 0.5], [{0: 1.0}, {0: 1.0}])


def test_targets() -> None:
    assert parse_target("uniform", 4) == (0.25,) * 4
    assert parse_target("code:0=.3,code:1=.7", 2) == (0.3, 0.7)
    assert parse_target(" code:2 = 1.0 ", 3) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "target",
    ["", "women", "code:2=1", "code:0", "code:0=", "code:0=x", "code:0=.5,code:0=.5", "code:0=.5", "code:0=nan",
     "code:0=-1,code:1=2", "code:0=.5,code:1=.6", "uniform,code:0=1", "code:0=inf"],
)  # fmt: skip
def test_bad_targets_are_named(target: str) -> None:
    with pytest.raises(DdmError, match="target"):
        parse_target(target, 2)


@settings(deadline=None)
@given(weights=shares(6))
def test_target_text_round_trips(weights: list[float]) -> None:
    text = ",".join(f"code:{k}={weight!r}" for k, weight in enumerate(weights))
    assert parse_target(text, len(weights)) == tuple(weights)


@settings(deadline=None)
@given(text=st.text(alphabet="code:01=.,e+-unifrm ", max_size=30), k=st.integers(1, 3))
def test_no_target_crashes_the_parser(text: str, k: int) -> None:
    with contextlib.suppress(DdmError):
        assert math.isclose(sum(parse_target(text, k)), 1, abs_tol=SUM_TOLERANCE)
