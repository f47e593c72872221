"""A against B on the same seeds and codes: what paired labels say of a difference in group shares.

A table [C,C] counts pairs by category, row = A, column = B. Categories are the groups, and "neither" where it occurs,
so shares here are of all n images: an image that turns into neither is a change as well.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.intervals import Interval, wilson

NEITHER = "neither"
MARGIN = 0.03
CONFIDENCE = 0.90  # of an interval inside ±margin: two one-sided tests of 5 % each
ALPHA = 0.05
POWER = 0.80  # with which the recommended number of images decides
_FLIPS = 9_999
_CLOSE = 1e-12

Table = NDArray[np.int64]  # [C, C]


class Decision(IntEnum):
    """What the gate says; the number is the exit code (2 is a user's error)."""

    EQUIVALENT = 0
    DRIFT = 1
    UNDECIDED = 3


class MarginalTest(Frozen):
    """A test of "the shares are the same": `p` is exact given the number of changes, `p_chi2` the large-sample one."""

    name: str
    statistic: float
    degrees: int
    p: float
    p_chi2: float


class ShareChange(Frozen):
    """One category: its shares of all n images, and the difference B − A with its 90 % interval."""

    group: str
    share_a: float
    share_b: float
    lost: int  # pairs that have it in A alone
    gained: int  # pairs that have it in B alone
    difference: float
    interval: Interval


class Paired(Frozen):
    """All that the labels of n pairs say, and the decision."""

    n: int
    categories: tuple[str, ...]
    table: tuple[tuple[int, ...], ...]
    flips: int
    flip_rate: float
    flip_interval: Interval  # 95 %, Wilson
    changes: tuple[ShareChange, ...]
    test: MarginalTest
    margin: float
    decision: Decision
    n_needed: int | None  # images of a new run that would decide with 80 % probability; None where this one has


def paired(
    a: NDArray[np.str_], b: NDArray[np.str_], groups: Sequence[str], *, margin: float = MARGIN, seed: int = 0
) -> Paired:
    """Labels a, b [N] of the same N seeds and codes. Raises DdmError on other shapes, groups or margins.

    Pairs are taken as independent. Under a quota the strata are fixed, which makes differences vary less than that, so
    intervals and test err on the safe side.
    """
    return decide(*cross_table(a, b, groups), margin=margin, seed=seed)


def check(groups: Sequence[str], margin: float) -> None:
    """Raises DdmError unless there are two or more different groups, and a margin that is a share."""
    if len(groups) < 2 or len(set(groups)) != len(groups) or NEITHER in groups:
        raise DdmError(f"groups are {', '.join(groups)}; expected two or more different ones, none named {NEITHER}")
    if not 0 < margin < 1:
        raise DdmError(f"margin is {margin}; expected a share between 0 and 1")


def cross_table(a: NDArray[np.str_], b: NDArray[np.str_], groups: Sequence[str]) -> tuple[Table, tuple[str, ...]]:
    """Counts [C,C] and the names of the categories. Raises DdmError as `paired`."""
    if a.ndim != 1 or a.shape != b.shape or len(a) == 0:
        raise DdmError(f"pairs: {list(a.shape)} labels against {list(b.shape)}; expected equally many, at least 1")
    check(groups, MARGIN)
    index = {group: k for k, group in enumerate(groups)}
    rows, columns = (np.array([index.get(label, len(groups)) for label in labels.tolist()]) for labels in (a, b))
    size = len(groups) + int(max(rows.max(), columns.max()) == len(groups))
    table = np.zeros((size, size), np.int64)
    np.add.at(table, (rows, columns), 1)
    return table, (*groups, NEITHER)[:size]


def decide(table: Table, categories: Sequence[str], *, margin: float = MARGIN, seed: int = 0) -> Paired:
    """Equivalent where every difference's 90 % interval lies inside ±margin; else drift at p < .05; else undecided.

    The first is an intersection of two-one-sided tests, each at 5 %, so a real difference of the margin or more is
    called equivalent at most 5 % of the time however many groups there are.
    """
    check(categories[:2], margin)
    n = int(table.sum())
    before, after, both = table.sum(axis=1), table.sum(axis=0), np.diag(table)
    changes = tuple(
        ShareChange(
            group=category,
            share_a=float(before[k] / n),
            share_b=float(after[k] / n),
            lost=int(before[k] - both[k]),
            gained=int(after[k] - both[k]),
            difference=float((after[k] - before[k]) / n),
            interval=difference_interval(int(after[k] - both[k]), int(before[k] - both[k]), n),
        )
        for k, category in enumerate(categories)
    )
    flips = n - int(both.sum())
    test = marginal_test(table, seed=seed)
    if all(-margin < low and high < margin for low, high in (change.interval for change in changes)):
        decision = Decision.EQUIVALENT
    else:
        decision = Decision.DRIFT if test.p < ALPHA else Decision.UNDECIDED
    return Paired(
        n=n,
        categories=tuple(categories),
        table=tuple(tuple(row) for row in table.tolist()),
        flips=flips,
        flip_rate=flips / n,
        flip_interval=wilson(flips, n),
        changes=changes,
        test=test,
        margin=margin,
        decision=decision,
        n_needed=images_needed(table, margin) if decision is Decision.UNDECIDED else None,
    )


def difference_interval(gained: float, lost: float, n: float, confidence: float = CONFIDENCE) -> Interval:
    """Score interval of (gained − lost)/n for paired shares (Tango 1998, Statistics in Medicine 17, 891-908).

    Unlike Wald's it has a width where nothing changed, ±z²/(n + z²), and doesn't call three pairs equivalent.
    """
    z, d = float(stats.norm.ppf((1 + confidence) / 2)), (gained - lost) / n

    def excess(delta: float, sign: int) -> float:
        """sign·(d − Δ)·n − z·SD(Δ): zero at the bound; q is the likeliest P(lost) where the difference is Δ."""
        linear = (2 * n - gained + lost) * delta - gained - lost
        root = np.sqrt(max(linear**2 + 8 * n * lost * delta * (1 - delta), 0.0))  # rounding must not push it below 0
        q = (root - linear) / (4 * n)
        variance = max(2 * q + delta * (1 - delta), 0.0)
        return float(sign * (gained - lost - n * delta) - z * np.sqrt(n * variance))

    # At Δ = d itself the excess is not positive (0 where nothing changed, which is no bound); beyond ±1 there is none.
    low = -1.0 if d - _CLOSE <= -1 else float(brentq(excess, -1, d - _CLOSE, args=(1,)))
    high = 1.0 if d + _CLOSE >= 1 else float(brentq(excess, d + _CLOSE, 1, args=(-1,)))
    return (low, high)


def marginal_test(table: Table, *, seed: int = 0) -> MarginalTest:
    """McNemar's exact test where images moved between two categories, Stuart-Maxwell's where between more.

    Statistic d'V⁻d with d = column sums − row sums and V = Σ over changed pairs of (e_i − e_j)(e_i − e_j)' (Stuart
    1955; Maxwell 1970). Given how many images moved between i and j, each went either way with probability ½; McNemar's
    p is the binomial's, the other is taken from `_FLIPS` draws of those binomials (seeded), so that a few changes of a
    rare category don't strain a χ² approximation.
    """
    moved = table + table.T
    np.fill_diagonal(moved, 0)
    used = np.flatnonzero(moved.any(axis=0))
    table, moved = table[np.ix_(used, used)], moved[np.ix_(used, used)]
    if len(used) == 0:
        return MarginalTest(name="no label changed", statistic=0.0, degrees=0, p=1.0, p_chi2=1.0)
    d = (table.sum(axis=0) - table.sum(axis=1)).astype(np.float64)
    covariance = (np.diag(moved.sum(axis=0)) - moved).astype(np.float64)
    inverse = np.linalg.pinv(covariance, hermitian=True)
    statistic, degrees = float(d @ inverse @ d), int(np.linalg.matrix_rank(covariance, hermitian=True))
    p_chi2 = float(stats.chi2.sf(statistic, degrees))
    if len(used) == 2:
        p = float(stats.binomtest(int(table[0, 1]), int(moved[0, 1])).pvalue)
        return MarginalTest(name="McNemar, exact", statistic=statistic, degrees=degrees, p=p, p_chi2=p_chi2)
    i, j = np.nonzero(np.triu(moved))
    rng = np.random.default_rng(seed)
    net = 2 * rng.binomial(moved[i, j], 0.5, size=(_FLIPS, len(i))) - moved[i, j]  # [flips, pairs]: to j less to i
    direction = np.eye(len(used))[j] - np.eye(len(used))[i]  # [pairs, C]
    drawn = net @ direction
    as_far = ((drawn @ inverse) * drawn).sum(axis=1) >= statistic * (1 - 1e-9)
    p = float((1 + as_far.sum()) / (1 + _FLIPS))
    return MarginalTest(name="Stuart-Maxwell, exact", statistic=statistic, degrees=degrees, p=p, p_chi2=p_chi2)


def images_needed(table: Table, margin: float = MARGIN) -> int:
    """Images of a new run that decides, either way, with 80 % probability if rates of change are those of `table`.

    Rates are those of one more change each way per pair of categories that changed, as none at all is no evidence of
    none. Normal approximation; the smaller of what equivalence and what drift would take, and at least what the
    interval takes where nothing changes.
    """
    n = int(table.sum())
    moved = table + table.T
    np.fill_diagonal(moved, 0)
    rates = np.where(moved > 0, table + 1, 0) / (n + 2)
    np.fill_diagonal(rates, 0)
    d = rates.sum(axis=0) - rates.sum(axis=1)
    changing = rates.sum(axis=0) + rates.sum(axis=1)
    room = margin - np.abs(d)
    one_sided = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
    z = one_sided + float(stats.norm.ppf((1 + POWER) / 2))  # either bound may fail: half of the misses each
    no_change = one_sided**2 * (1 - margin) / margin
    equivalence = max(float((z**2 * (changing - d**2) / room**2).max()), no_change) if (room > 0).all() else np.inf
    covariance = np.diag(changing) - rates - rates.T
    effect = float(d @ np.linalg.pinv(covariance, hermitian=True) @ d)
    degrees = int(np.linalg.matrix_rank(covariance, hermitian=True))
    drift = _noncentrality(degrees) / effect if effect > 1e-12 else np.inf
    return max(int(np.ceil(min(equivalence, drift))), n + 1)


def _noncentrality(degrees: int) -> float:
    """With which a χ² test at 5 % has 80 % power."""
    critical = stats.chi2.ppf(1 - ALPHA, degrees)
    return float(brentq(lambda size: stats.ncx2.sf(critical, degrees, size) - POWER, 0.1, 200))
