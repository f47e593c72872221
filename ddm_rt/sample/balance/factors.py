"""Targets over crossing factors, and how far a factor's shares can be off.

A bundle with factors has one code for each cell of their product that occurs, and a code's top code is its value of the
first factor. The tree's quota (`quota.py`) draws the cells, and knows nothing of the other factors. Here is what it
promises of them all the same.

Let v be a value of a factor. Write x for the number of its images after n draws, N_p for those of top code p, with the
weight π_p, and s_p for the share of v in p, so that v's share of all is w = Σ_p π_p s_p. Then

    x - n·w = Σ_p (x_p - N_p s_p) + Σ_p s_p (N_p - n·π_p)

where x_p counts the images of v in p. Only top codes and cells with a positive weight matter; say that there are P top
codes, and m_p cells in p, of which j_p are v's.

- Each cell of p is off by at most b_p = 1 - 1/(2m_p - 2) against N_p (0 for m_p = 1), and the cells of p together by
  nothing, as they make up N_p. So v's cells are off by at most j_p b_p, and, as the others are off by as much the other
  way, by at most (m_p - j_p) b_p: the first sum is at most Σ_p min(j_p, m_p - j_p) b_p.
- Each top code is off by at most b = 1 - 1/(2P - 2), and all together by nothing. A sum Σ_p s_p d_p with |d_p| ≤ b and
  Σ_p d_p = 0 is largest where d is b for the ⌊P/2⌋ largest s_p and -b for the ⌊P/2⌋ smallest: with another d, some d_p
  could be raised and a d_q with s_q ≤ s_p lowered by as much. It vanishes where s_p is the same for all p, as it is in
  a full product.

    |x - n·w| ≤ Σ_p min(j_p, m_p - j_p) b_p + b·(the ⌊P/2⌋ largest s_p - the ⌊P/2⌋ smallest)

For the first factor the first sum vanishes, s is 1 for one top code and 0 for the others, and this is Tijdeman's bound,
less than 1. `bound` computes it with the weights as the quota stores them: multiples of 2^-48.
"""

import math
from collections.abc import Sequence
from fractions import Fraction

from ddm_rt.errors import DdmError
from ddm_rt.raking import Margin, rake, shares
from ddm_rt.runtime import CodeTable, Factor
from ddm_rt.sample.balance.quota import DENOMINATOR, TreeQuota, quantise, share_of

_NOTHING = 1e-9  # a share that a person needn't be told
_MIXED = (0.0, 0.01, 0.1, 1.0)  # parts of the uniform weights; their own shares are always reached

Wanted = dict[str, list[float]]  # factor -> the share of each of its values


def names_factors(target: str, factors: Sequence[Factor]) -> bool:
    """Whether a target is over factors: it begins with the name of one, and a colon.

    A calibration may have an attribute of that name; targets name it by its groups alone then.
    """
    name, colon, _ = target.partition(":")
    return bool(colon) and name.strip() in {factor.name for factor in factors}


def parse_factors(target: str, factors: Sequence[Factor]) -> Wanted:
    """From "gender:female=.5,gender:male=.5,hair:dark=1", in the factors' order. A value that isn't named gets 0.

    Raises DdmError naming `target` for an unknown factor or value, a share that is no number, not finite or negative, a
    value that is named twice, and shares of a factor that don't sum to 1 (within 1e-6).
    """
    values_of = {factor.name: factor.values for factor in factors}
    given: dict[tuple[str, str], float] = {}
    for part in target.split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        factor, _, value = (piece.strip() for piece in name.partition(":"))
        if not equals or value not in values_of.get(factor, ()):
            raise DdmError(f"target {target!r}: {part.strip()!r}; expected FACTOR:VALUE=SHARE, with {known(factors)}")
        if (factor, value) in given:
            raise DdmError(f"target {target!r}: {factor}:{value} is given twice")
        given[factor, value] = share_of(f"{factor}:{value}", share, target)
    named = {factor for factor, _ in given}
    wanted = {
        name: [given.get((name, value), 0.0) for value in values] for name, values in values_of.items() if name in named
    }
    for name, each in wanted.items():
        quantise(each, f"target {target!r}: {name}")
    return wanted


def known(factors: Sequence[Factor]) -> str:
    """The factors and their values, for a message."""
    return "; ".join(f"{factor.name}: {', '.join(factor.values)}" for factor in factors)


def spelled(wanted: Wanted, factors: Sequence[Factor]) -> str:
    """The one spelling of a target: factors and values in the bundle's order, without shares of 0."""
    return ",".join(
        f"{factor.name}:{value}={share!r}"
        for factor in factors
        if factor.name in wanted
        for value, share in zip(factor.values, wanted[factor.name], strict=True)
        if share
    )


def uniform_weights(codes: CodeTable) -> list[float]:
    """The weight of each code under the target "uniform"."""
    return [leaf.share_in_top / codes.num_top_codes for leaf in codes.leaves]


def cell_weights(codes: CodeTable, wanted: Wanted, target: str) -> list[float]:
    """The weight of each code under a target: the uniform ones, raked. A factor that isn't named keeps its shares.

    Raises DdmError naming `target` where no weights give it, with one near it that some give.
    """
    weights = uniform_weights(codes)
    margins = {
        factor.name: Margin(
            factor.value_of,
            [share / math.fsum(wanted[factor.name]) for share in wanted[factor.name]]
            if factor.name in wanted
            else shares(factor.value_of, weights, len(factor.values)),
        )
        for factor in codes.factors
    }
    # Where not all can be met, those that were named are.
    found, reached = rake(weights, [margins[name] for name in sorted(margins, key=lambda name: name in wanted)])
    if reached:
        return found
    if not (mass := math.fsum(found)):
        raise DdmError(f"target {target!r} is out of reach: no code has all of these values")
    reachable = _within_reach([weight / mass for weight in found], weights, codes.factors)
    within = ",".join(
        f"{factor.name}:{value}={share:.9g}"
        for factor, margin in zip(codes.factors, reachable, strict=True)
        for value, share in zip(factor.values, margin.wanted, strict=True)
        if share > _NOTHING
    )
    raise DdmError(
        f"target {target!r} is out of reach: some combinations of values have no code, or too little of one. "
        f"A target within reach is {within}"
    )


def _within_reach(found: Sequence[float], weights: Sequence[float], factors: Sequence[Factor]) -> list[Margin]:
    """The shares of `found`, or of a mixture with `weights` where raking would take too long to reach those."""
    margins: list[Margin] = []
    for part in _MIXED:
        mixed = [(1 - part) * a + part * b for a, b in zip(found, weights, strict=True)]
        margins = [Margin(factor.value_of, shares(factor.value_of, mixed, len(factor.values))) for factor in factors]
        if rake(weights, margins)[1]:
            break
    return margins


def bound(factor: Factor, value: int, quota: TreeQuota) -> Fraction:
    """The largest distance of a count of this value from its share that the module's proof allows, for any prefix of a
    stream of `quota`, whose codes are those of `factor`. It holds against the quota's own weights.
    """
    first, top_shares = Fraction(0), list[int]()
    for top, codes, leaf in zip(quota.top.weights, quota.codes, quota.leaves, strict=True):
        if top:
            own = [weight for code, weight in zip(codes, leaf.weights, strict=True) if factor.value_of[code] == value]
            of_value = sum(map(bool, own))
            if others := sum(map(bool, leaf.weights)) - of_value:
                first += min(of_value, others) * leaf.bound
            top_shares.append(sum(own))
    top_shares.sort()
    half = len(top_shares) // 2
    spread = sum(top_shares[len(top_shares) - half :]) - sum(top_shares[:half])
    return first + quota.top.bound * Fraction(spread, DENOMINATOR)
