"""Quotas: which code each image of a stream gets, so that every prefix of the stream is close to the target.

R. Tijdeman, "The chairman assignment problem", Discrete Mathematics 32 (1980) 323-330. With K codes of positive
weight λ_k that sum to 1, the counts x_k after any number n of draws satisfy |x_k - n·λ_k| ≤ 1 - 1/(2K - 2), and for
some weights no rule does better. A draw depends on the counts alone, so the sizes of requests don't matter.

In a tree the same holds for the top codes, and for the codes of a branch against the branch's own count N. So a code
with the share s of its branch, whose top code has the weight π, satisfies

    |x - n·π·s| ≤ |x - N·s| + s·|N - n·π| ≤ (1 - 1/(2m - 2)) + s·(1 - 1/(2K - 2)) < 2

with m codes in the branch; the first term is 0 for m = 1, the second for K = 1.

Exact integer arithmetic: weights are multiples of 2^-48, and the bounds hold against those.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
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
        self._largest_lag = math.floor(self.bound * DENOMINATOR)

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

    def restore(self, counts: Sequence[int]) -> None:
        """Go on as after draws with these counts, one per weight.

        Raises DdmError for counts that no sequence of draws leads to.
        """
        if len(counts) != len(self.weights) or not all(type(count) is int and count >= 0 for count in counts):
            raise DdmError(f"counts: expected {len(self.weights)} whole numbers, not negative")
        n = sum(counts)
        lag = [n * weight - count * DENOMINATOR for weight, count in zip(self.weights, counts, strict=True)]
        if max(max(lag), -min(lag)) > self._largest_lag:
            raise DdmError("counts: further from the weights than any draws could be")
        self.counts, self._lag = list(counts), lag


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

    @property
    def counts(self) -> dict[int, int]:
        """How often each code was drawn."""
        branches = zip(self.codes, self.leaves, strict=True)
        return {code: n for codes, leaf in branches for code, n in zip(codes, leaf.counts, strict=True)}

    def restore(self, counts: Mapping[int, int]) -> None:
        """Go on as after draws with these counts, one for each code.

        Raises DdmError for counts that no sequence of draws leads to; the quota is of no use then.
        """
        if counts.keys() != self.counts.keys():
            raise DdmError(f"counts: expected one for each of the codes {sorted(self.counts)}; found {sorted(counts)}")
        for codes, leaf in zip(self.codes, self.leaves, strict=True):
            leaf.restore([counts[code] for code in codes])
        self.top.restore([sum(leaf.counts) for leaf in self.leaves])

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
    rounded = total(weights)
    if abs(rounded - 1) > SUM_TOLERANCE:
        raise DdmError(f"{field}: the weights sum to {rounded:.9g}; expected 1")
    ratios = [weight.as_integer_ratio() for weight in weights]
    common = max(denominator for _, denominator in ratios)  # they are powers of 2
    exact = [numerator * (common // denominator) for numerator, denominator in ratios]
    whole_sum = sum(exact)
    whole = [value * DENOMINATOR // whole_sum for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda k: (-(exact[k] * DENOMINATOR % whole_sum), k))
    for k in by_remainder[: DENOMINATOR - sum(whole)]:
        whole[k] += 1
    return whole


def total(weights: Iterable[float]) -> float:
    """The sum, rounded once; infinite where no number is as large."""
    try:
        return math.fsum(weights)
    except OverflowError:
        return math.inf


def share_of(name: str, share: str, target: str) -> float:
    """A share as it is written in `target`. Raises DdmError quoting both where it is no number."""
    try:
        return float(share)
    except ValueError as error:
        raise DdmError(f"target {target!r}: {share!r} is no number; expected the share of {name}") from error


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
        weights[name] = share_of(name, share, target)
    quantise(list(weights.values()), f"target {target!r}")
    return tuple(weights.values())
