"""Targets over crossing factors: what they say, the weights that give them, and the bound of every value's images."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from factor_tables import random_table, random_weights, weights_of
from fake_engine import factor_bundle, fake_bundle
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tolerances import SOLVED_SHARE_ABS

from ddm_rt.errors import BundleError, DdmError
from ddm_rt.raking import shares
from ddm_rt.runtime import CodeTable, check_factors
from ddm_rt.sample.balance.assignment import Weights, by_names
from ddm_rt.sample.balance.factors import (
    bound,
    cell_weights,
    names_factors,
    parse_factors,
    spelled,
)
from ddm_rt.sample.balance.quota import DENOMINATOR, TreeQuota

FULL, MISSING = factor_bundle(), factor_bundle(missing=True)
FACTORS = FULL.codes.factors


def check_bound(codes: CodeTable, weights: Weights, requests: Sequence[int]) -> None:
    """Exactly, on every prefix, against the quota's own weights. After each request the counts alone go on, in another
    quota that draws next.
    """
    quota, other, drawn = weights.quota(), weights.quota(), list[int]()
    for n in requests:
        drawn += [code for code, _ in quota.assign(n)]
        other.restore(quota.counts)
        quota, other = other, quota
    whole = [0] * codes.num_codes  # of DENOMINATOR²
    for top, members, leaf in zip(quota.top.weights, quota.codes, quota.leaves, strict=True):
        for code, weight in zip(members, leaf.weights, strict=True):
            whole[code] = top * weight
    values = [(factor, value) for factor in codes.factors for value in range(len(factor.values))]
    member = np.array([[v == value for v in factor.value_of] for factor, value in values])  # [V, codes]
    share = np.array([sum(w for w, own in zip(whole, row, strict=True) if own) for row in member], dtype=object)
    counts = np.cumsum(member[:, drawn], axis=1).astype(object)  # [V, n]
    off = np.abs(counts * DENOMINATOR**2 - share[:, None] * np.arange(1, len(drawn) + 1, dtype=object)).max(axis=1)
    for (factor, value), most in zip(values, off, strict=True):
        assert Fraction(int(most), DENOMINATOR**2) <= bound(factor, value, quota), (factor.name, value)


streams = {"seed": st.integers(0, 2**32 - 1), "requests": st.lists(st.integers(1, 16), min_size=1, max_size=4)}


@settings(max_examples=100, deadline=None)
@given(**streams)
def test_bound_of_every_value_on_every_prefix(seed: int, requests: list[int]) -> None:
    rng = np.random.default_rng(seed)
    codes = random_table(rng)
    check_bound(codes, weights_of(codes, random_weights(codes, rng)), requests)


@pytest.mark.slow(reason="10,000 tables, targets and streams that hypothesis looks for take a minute")
@settings(max_examples=10_000, deadline=None)
@given(**streams)
def test_bound_over_10_000_streams(seed: int, requests: list[int]) -> None:
    rng = np.random.default_rng(seed)
    codes = random_table(rng)
    check_bound(codes, weights_of(codes, random_weights(codes, rng)), requests)


@pytest.mark.slow(reason="90,000 more, drawn at random, take a minute")
def test_bound_over_90_000_random_streams() -> None:
    """30 streams for each of 3,000 tables."""
    rng = np.random.default_rng(0)
    for _ in range(3000):
        codes = random_table(rng)
        for _ in range(30):
            requests = [int(n) for n in rng.choice([1, 1, 2, 3, 16], rng.integers(1, 6))]
            check_bound(codes, weights_of(codes, random_weights(codes, rng)), requests)


def test_the_bound_of_a_product_in_numbers() -> None:
    """Two by three, even: 1/2 for the first factor; of hair, 2 branches of 3 codes: 2 (1 - 1/4)."""
    quota = by_names(FULL, "uniform").quota()  # type: ignore[union-attr]
    gender, hair = FACTORS
    assert [bound(gender, v, quota) for v in range(2)] == [Fraction(1, 2)] * 2
    for value in range(3):
        assert abs(bound(hair, value, quota) - Fraction(3, 2)) <= Fraction(2, DENOMINATOR)


def test_the_bound_where_shares_differ_by_branch() -> None:
    """Of the females none is grey, of the males 2/3: 0 + 3/4 of the cells, and 1/2 · 2/3 of the top codes."""
    quota = by_names(MISSING, "uniform").quota()  # type: ignore[union-attr]
    hair = MISSING.codes.factors[1]
    assert float(bound(hair, 2, quota)) == pytest.approx(3 / 4 + 1 / 3)
    assert float(bound(hair, 0, quota)) == pytest.approx(1 / 2 + 3 / 4 + 1 / 2 * (1 / 2 - 1 / 6))


def test_turned_cells_balance_the_second_factor_early() -> None:
    drawn = [code for code, _ in by_names(FULL, "uniform").quota().assign(6)]  # type: ignore[union-attr]
    assert [FACTORS[0].value_of[code] for code in drawn] == [0, 1] * 3
    assert sorted(drawn) == list(range(6))
    assert [FACTORS[1].value_of[code] for code in drawn] == [0, 1, 1, 2, 2, 0]


def test_targets() -> None:
    assert parse_factors(" gender : female = .3 , gender:male=.7", FACTORS) == {"gender": [0.3, 0.7]}
    wanted = parse_factors("hair:grey=1,gender:male=1,hair:dark=0", FACTORS)
    assert wanted == {"gender": [0.0, 1.0], "hair": [0.0, 0.0, 1.0]}
    assert spelled(wanted, FACTORS) == "gender:male=1.0,hair:grey=1.0"
    assert parse_factors(spelled(wanted, FACTORS), FACTORS) == wanted


@pytest.mark.parametrize(
    "target",
    ["gender:", "gender:x=1", "gender:female", "gender:female=", "gender:female=x", "gender:female=.5",
     "gender:female=nan", "gender:female=.5,gender:female=.5", "gender:female=-1,gender:male=2",
     "gender:female=.5,male=.5", "gender:uniform", "gender:dark=1", "gender:female=1,hair:dark=.5",
     "gender:female=1,length:long=1", "gender:female=1;hair:dark=1", "gender:female=1,", "gender:female=1e999",
     "gender:female=1,code:0=1", "GENDER:female=1", "gender:Female=1"],
)  # fmt: skip
def test_bad_targets_are_named(target: str) -> None:
    with pytest.raises(DdmError, match="target"):
        parse_factors(target, FACTORS)


def test_which_targets_are_over_factors() -> None:
    said = {"uniform": False, "code:0=1": False, "gender:female=1": True, " gender :x": True, "gender": False,
            "female=.5,male=.5": False, "gender&hair:uniform": False, "race:a=1": False}  # fmt: skip
    assert {target: names_factors(target, FACTORS) for target in said} == said
    assert not names_factors("gender:female=1", ())
    assert by_names(fake_bundle(), "gender:female=1") is None


def test_a_factor_that_is_not_named_keeps_its_shares() -> None:
    for bundle in (FULL, MISSING):
        weights = by_names(bundle, "gender:male=.8,gender:female=.2")
        assert weights is not None
        assert weights.target == "gender:female=0.2,gender:male=0.8"
        gender, hair = bundle.codes.factors
        assert shares(gender.value_of, weights.code_shares, 2) == pytest.approx([0.2, 0.8], abs=SOLVED_SHARE_ABS)
        assert shares(hair.value_of, weights.code_shares, 3) == pytest.approx([1 / 3] * 3, abs=SOLVED_SHARE_ABS)


def test_out_of_reach_the_nearest_target_is_told_and_taken() -> None:
    with pytest.raises(DdmError, match=r"out of reach.* is gender:female=1,hair:dark=0\.5,hair:fair=0\.5$"):
        by_names(MISSING, "gender:female=1")
    assert by_names(MISSING, "gender:female=1,hair:dark=.5,hair:fair=.5") is not None
    with pytest.raises(DdmError, match="no code has all of these values"):
        by_names(MISSING, "gender:female=1,hair:grey=1")


@settings(max_examples=60, deadline=None)
@example(371)  # whose first suggestions lay at the edge of what is within reach
@given(seed=st.integers(0, 2**32 - 1))
def test_any_target_is_reached_or_the_one_that_the_error_names(seed: int) -> None:
    rng = np.random.default_rng(seed)
    codes = random_table(rng)
    factor = codes.factors[int(rng.integers(len(codes.factors)))]
    raw = rng.dirichlet(np.ones(len(factor.values)))
    named = zip(factor.values, raw, strict=True)
    target = ",".join(f"{factor.name}:{value}={float(share)!r}" for value, share in named)
    for _ in range(2):  # the one that an error names is taken
        try:
            assert cell_weights(codes, parse_factors(target, codes.factors), target)
            return
        except DdmError as error:
            target = str(error).rpartition(" is ")[2]
    raise AssertionError(target)


@pytest.mark.parametrize("name", ["", " a", "a ", "a:b", "a=b", "a,b", "a\nb", "a\x1cb", "a" * 65, "\ud800", "code"])
def test_names_that_no_target_can_have(name: str) -> None:
    codes = FULL.codes
    renamed = codes.factors[0].model_copy(update={"name": name})
    with pytest.raises(BundleError, match=r"^here: "):
        check_factors(codes.model_copy(update={"factors": (renamed, codes.factors[1])}), "here")


def test_a_value_may_be_called_as_another_factor_or_its_value() -> None:
    gender, hair = FACTORS
    same = (gender, hair.model_copy(update={"values": ("female", "gender", "ζ=".strip("="))}))
    wanted = parse_factors("hair:female=.5,hair:gender=.25,hair:ζ=.25,gender:female=1", same)
    assert wanted == {"gender": [1.0, 0.0], "hair": [0.5, 0.25, 0.25]}


def test_a_tree_quota_needs_no_factors() -> None:
    weights = by_names(MISSING, "uniform")
    assert weights is not None
    assert isinstance(weights.quota(), TreeQuota)
    assert weights.code_shares == pytest.approx([1 / 4, 1 / 4, 1 / 12, 1 / 3, 1 / 12])
