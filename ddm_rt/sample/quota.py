"""Quotas: which code each image of a request gets, so that every prefix of the request is close to the target.

R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980) 323-330. With K codes of positive
weight λ_k, the counts x_k after any number n of draws satisfy |x_k - n·λ_k| ≤ 1 - 1/(2K - 2), and no rule can promise
less. Exact integer arithmetic: weights are multiples of 2^-48.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from ddm_rt.errors import DdmError

DENOMINATOR = 2**48  # weights are stored as integers W_k with λ_k = W_k / DENOMINATOR
SUM_TOLERANCE = 1e-6


class Quota:
    """Draws indices 0 .. len(weights) - 1 in the shares `weights`, one at a time.

    `weights` must be finite, not negative, and sum to 1 within 1e-6 (they are then scaled to 1). An index of weight 0
    is never drawn. Raises DdmError naming `field` and what is wrong.
    """

    def __init__(self, weights: Sequence[float], field: str = "weights") -> None:
        self.weights = quantise(weights, field)  # integers that sum to DENOMINATOR
        self.counts = [0] * len(self.weights)
        self._live = [k for k, weight in enumerate(self.weights) if weight]
        self._lag = [0] * len(self.weights)  # (n·λ_k - x_k)·DENOMINATOR after n draws

    @property
    def bound(self) -> Fraction:
        """The largest distance of a count from its share that can occur: 1 - 1/(2K - 2), or 0 for K = 1."""
        return 1 - Fraction(1, 2 * len(self._live) - 2) if len(self._live) > 1 else Fraction(0)

    def draw(self) -> int:
        """The next index: of those far enough behind their share, the one that must be drawn soonest."""
        weights, lag = self.weights, self._lag
        for k in self._live:
            lag[k] += weights[k]
        chosen = self._live[0]
        if len(self._live) > 1:
            # Both sides of Tijdeman's conditions are multiplied by (2K - 2)·DENOMINATOR.
            parts = 2 * len(self._live) - 2
            numerator, denominator = 1, 0  # +∞: the soonest deadline so far, in draws from now, as a fraction
            for k in self._live:
                scaled = parts * lag[k]
                if scaled >= DENOMINATOR:
                    slack = (parts - 1) * DENOMINATOR - scaled
                    if slack * denominator < numerator * weights[k]:
                        chosen, numerator, denominator = k, slack, weights[k]
        lag[chosen] -= DENOMINATOR
        self.counts[chosen] += 1
        return chosen

    def assign(self, n: int) -> list[int]:
        """The next `n` draws."""
        return [self.draw() for _ in range(n)]

    def state(self) -> dict[str, list[int]]:
        """Plain data from which `from_state` goes on as if nothing had happened."""
        return {"weights": list(self.weights), "counts": list(self.counts)}

    @classmethod
    def from_state(cls, state: Mapping[str, Sequence[int]]) -> "Quota":
        """Raises DdmError for a state that no sequence of draws leads to."""
        weights, counts = _naturals(state, "weights"), _naturals(state, "counts")
        if sum(weights) != DENOMINATOR or len(counts) != len(weights):
            raise DdmError(
                f"quota state: weights must sum to {DENOMINATOR} and be as many as counts; "
                f"found {len(weights)} with the sum {sum(weights)}, and {len(counts)} counts"
            )
        quota = cls([weight / DENOMINATOR for weight in weights], "quota state: field weights")
        n = sum(counts)
        quota.counts = counts
        quota._lag = [n * weight - count * DENOMINATOR for weight, count in zip(weights, counts, strict=True)]
        if any(abs(lag) > quota.bound * DENOMINATOR for lag in quota._lag):
            raise DdmError("quota state: field counts: further from the weights than any draws could be")
        return quota


class TreeQuota:
    """Quotas over a tree: a top code by `top_weights`, then a code of that branch by the branch's own quota.

    `leaf_shares` gives for each top code its codes with their shares of it. Raises DdmError as `Quota` does, and for a
    branch without codes or a code in two branches.
    """

    def __init__(self, top_weights: Sequence[float], leaf_shares: Sequence[Mapping[int, float]]) -> None:
        if len(top_weights) != len(leaf_shares):
            raise DdmError(f"target has {len(top_weights)} top codes; the tree has {len(leaf_shares)}")
        self.top = Quota(top_weights, "target")
        self.codes = [list(shares) for shares in leaf_shares]
        self.leaves = [
            Quota(list(shares.values()), f"shares of top code {top}") for top, shares in enumerate(leaf_shares)
        ]
        every = [code for codes in self.codes for code in codes]
        if len(set(every)) != len(every):
            raise DdmError("a code stands in more than one branch of the tree")

    def draw(self) -> tuple[int, int]:
        """The next (code, top code)."""
        top = self.top.draw()
        return self.codes[top][self.leaves[top].draw()], top

    def assign(self, n: int) -> list[tuple[int, int]]:
        """The next `n` draws."""
        return [self.draw() for _ in range(n)]


def quantise(weights: Sequence[float], field: str) -> list[int]:
    """Integers in proportion to `weights` that sum to DENOMINATOR, by largest remainder; zero stays zero.

    Raises DdmError naming `field` for weights that are not finite, negative, or don't sum to 1 within 1e-6.
    """
    if not weights:
        raise DdmError(f"{field}: no weights; expected at least one")
    for k, weight in enumerate(weights):
        if not (math.isfinite(weight) and weight >= 0):
            raise DdmError(f"{field}: weight {k} is {weight}; expected a finite number, not negative")
    total = sum(map(Fraction, weights))
    if abs(float(total) - 1) > SUM_TOLERANCE:
        raise DdmError(f"{field}: the weights sum to {float(total):.9g}; expected 1")
    exact = [Fraction(weight) * DENOMINATOR / total for weight in weights]
    whole = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (whole[k] - exact[k], k))
    for k in by_remainder[: DENOMINATOR - sum(whole)]:
        whole[k] += 1
    return whole


def _naturals(state: Mapping[str, Sequence[int]], name: str) -> list[int]:
    values = state.get(name)
    if not isinstance(values, list | tuple) or not all(type(value) is int and value >= 0 for value in values):
        raise DdmError(f"quota state: field {name}: expected a list of whole numbers, not negative")
    return list(values)


def parse_target(target: str, num_top_codes: int) -> tuple[float, ...]:
    """Weights of the top codes from "uniform" or "code:0=.3,code:1=.7"; a top code that isn't named gets 0.

    Raises DdmError naming `target` for an unknown top code, a share that is no number, one named twice, or a sum
    other than 1 (within 1e-6).
    """
    if target == "uniform":
        return (1 / num_top_codes,) * num_top_codes
    weights = dict.fromkeys((f"code:{k}" for k in range(num_top_codes)), 0.0)
    seen = set()
    for part in target.split(","):
        name, equals, share = (piece.strip() for piece in part.partition("="))
        if name not in weights or not equals:
            known = ", ".join(weights)
            raise DdmError(f"target {target!r}: {part.strip()!r}; expected uniform, or NAME=SHARE with NAME in {known}")
        if name in seen:
            raise DdmError(f"target {target!r}: {name} is given twice")
        seen.add(name)
        try:
            weights[name] = float(share)
        except ValueError as error:
            raise DdmError(f"target {target!r}: {share!r} is no number; expected the share of {name}") from error
    quantise(list(weights.values()), f"target {target!r}")
    return tuple(weights.values())
