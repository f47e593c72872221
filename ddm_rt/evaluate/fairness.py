"""Group shares and the scores made of them. Images judged as another class belong to no group ("neither").

p are the shares of K groups among the images that belong to some group; u is the target.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import entr, rel_entr

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.intervals import CONFIDENCE, Interval, percentile, wilson

Shares = NDArray[np.float64]  # [K], on the simplex

_TELLS_APART = 1e-3  # smallest singular value of P(judged | truth): 0 where one group is judged like a mix of others


class Scores(Frozen):
    """Scores of shares p of K groups against a target u: on an even target the last two are 1, the others 0."""

    fd_l2: float  # fairness discrepancy ‖u − p‖₂ (Choi et al. 2020)
    fd_ddm: (
        float | None
    )  # two groups only: |p − ½|, as in DDM (Huang et al. 2025); FD_L2 on an even target is √2 times it
    bias_p: float  # mean of |p_i − p_j| over pairs of groups (Shen et al. 2024, bias-P)
    deviation_ratio: float  # max_k |p_k − 1/K| / (1 − 1/K): 1 when all images belong to one group
    kl: float  # KL(p‖u) in nats
    normalised_entropy: float  # entropy of p over that of K equal shares
    worst_group_ratio: float  # min_k p_k / u_k: 0 when a group is absent


def check_known(groups: Sequence[str], classes: Sequence[str]) -> None:
    """Raises DdmError naming the groups that are none of a judge's classes."""
    if missing := [group for group in groups if group not in classes]:
        raise DdmError(f"groups: {', '.join(missing)} unknown to the judge; its classes: {', '.join(classes)}")


def count_table(
    labels: NDArray[np.str_], groups: Sequence[str], codes: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Counts [S,K] of `labels` [N] per code: one row without codes, else one per code that occurs, ascending.

    Labels outside `groups` are counted nowhere. Raises DdmError on fewer than two or repeated groups.
    """
    if len(groups) < 2 or len(set(groups)) != len(groups):
        raise DdmError(f"groups are {list(groups)}; expected two or more different names")
    if codes is not None and codes.shape != labels.shape:
        raise DdmError(f"codes: {list(codes.shape)}; expected one for each of {len(labels)} images")
    rows = np.zeros(len(labels), dtype=np.int64) if codes is None else np.unique(codes, return_inverse=True)[1]
    table = np.zeros((int(rows.max(initial=0)) + 1, len(groups)), dtype=np.int64)
    for k, group in enumerate(groups):
        np.add.at(table[:, k], rows[labels == group], 1)
    return table


def shares(counts: NDArray[np.int64], groups: Sequence[str]) -> Shares:
    """p [K] from counts [K]. Raises DdmError where no image belongs to a group."""
    if counts.sum() == 0:
        raise DdmError(f"groups: no image was judged as any of {', '.join(groups)}; shares are undefined")
    return np.asarray(counts / counts.sum(), dtype=np.float64)


def scores(p: Shares, u: Shares) -> Scores:
    """Every score of shares p [K] against the target u [K], which must be positive."""
    even = 1 / len(p)
    i, j = np.triu_indices(len(p), k=1)
    return Scores(
        fd_l2=fd_l2(p, u),
        fd_ddm=float(abs(p[0] - 0.5)) if len(p) == 2 else None,
        bias_p=float(np.abs(p[i] - p[j]).mean()),
        deviation_ratio=float(np.abs(p - even).max() / (1 - even)),
        kl=float(rel_entr(p, u).sum()),
        normalised_entropy=float(entr(p).sum() / np.log(len(p))),
        worst_group_ratio=float((p / u).min()),
    )


def fd_l2(p: Shares, u: Shares) -> float:
    """Fairness discrepancy ‖u − p‖₂ (Choi et al. 2020)."""
    return float(np.linalg.norm(u - p))


def spd(matches: NDArray[np.bool_], wanted: NDArray[np.str_], groups: Sequence[str]) -> tuple[float, Interval]:
    """Statistical parity difference P(Y=1 | A=0) − P(Y=1 | A=1) in AIF360's form, 0 being groups[0]; 95 % interval.

    Y (`matches` [N]): the image matches its condition; A (`wanted` [N]): the group that it was asked to be.
    With more groups the largest absolute difference over pairs. Intervals of a pair are Newcombe's (1998, method 10,
    from Wilson's); with more groups all pairs hold at once (Bonferroni), and the largest of their bounds count. Raises
    DdmError on a group never asked for.
    """
    counts, sizes = [], []
    for group in groups:
        if not (asked := wanted == group).any():
            raise DdmError(f"conditions: no image was asked to be {group!r}; SPD needs each group")
        counts.append(int(matches[asked].sum()))
        sizes.append(int(asked.sum()))
    pairs = list(combinations(range(len(groups)), 2))
    confidence = 1 - (1 - CONFIDENCE) / len(pairs)
    rates = [count / size for count, size in zip(counts, sizes, strict=True)]
    bounds = [wilson(count, size, confidence) for count, size in zip(counts, sizes, strict=True)]
    found = []
    for i, j in pairs:
        low = float(np.hypot(rates[i] - bounds[i][0], bounds[j][1] - rates[j]))
        high = float(np.hypot(bounds[i][1] - rates[i], rates[j] - bounds[j][0]))
        difference = rates[i] - rates[j]
        found.append((difference, max(-1.0, difference - low), min(1.0, difference + high)))
    if len(pairs) == 1:
        return found[0][0], (found[0][1], found[0][2])
    # |difference| lies between the bound nearer to 0 (0 where the interval holds it) and the one further from it.
    inner = [0.0 if low <= 0 <= high else min(abs(low), abs(high)) for _, low, high in found]
    outer = [max(abs(low), abs(high)) for _, low, high in found]
    return max(rates) - min(rates), (max(inner), max(outer))


def cleam(p: float, a0: float, a1: float) -> float:
    """Share of group 0 corrected for the judge: (p − 1 + a₁)/(a₀ + a₁ − 1) cut to [0, 1] (Teo et al. 2023).

    a₀, a₁: the judge's accuracy on either group. Raises DdmError where it is no better than chance.
    """
    if a0 + a1 <= 1:
        raise DdmError(f"judge: accuracies {a0:.3f} and {a1:.3f} are no better than chance; no correction exists")
    return float(np.clip((p - 1 + a1) / (a0 + a1 - 1), 0, 1))


def group_confusion(confusion: NDArray[np.int64], classes: Sequence[str], groups: Sequence[str]) -> NDArray[np.int64]:
    """Counts [K,K] of held-out real images that are truly of group i (row) and were judged as group j.

    Shares are conditional on belonging to a group, so the correction is too. Raises DdmError on a group that the judge
    doesn't know or has no held-out images of, and on a judge whose verdicts don't tell the groups apart.
    """
    check_known(groups, classes)
    index = [list(classes).index(group) for group in groups]
    counts = confusion[np.ix_(index, index)]
    if not counts.sum(axis=1).all():
        raise DdmError("judge: metadata 'confusion' has no held-out images of some group")
    if np.linalg.svd(conditional(counts), compute_uv=False)[-1] < _TELLS_APART:
        raise DdmError(f"judge: its verdicts don't tell {', '.join(groups)} apart; no correction exists")
    return counts


def conditional(counts: NDArray[np.int64]) -> Shares:
    """P(judged as group j | truly group i) [K,K] from counts [K,K]."""
    return np.asarray(counts / counts.sum(axis=1, keepdims=True), dtype=np.float64)


def confusion_draws(counts: NDArray[np.int64], *, draws: int, seed: int) -> NDArray[np.float64]:
    """Draws [R,K,K] of P(judged | truth) given counts [K,K]: each row's Dirichlet posterior under Jeffreys' prior.

    A judge's error rates are known from finitely many held-out images; this is how well.
    """
    rng = np.random.default_rng(seed)
    return np.stack([rng.dirichlet(row + 0.5, size=draws) for row in counts], axis=1)


def correct(p: Shares, conditional: Shares) -> Shares:
    """True shares [K] that explain the judged shares p [K], given P(judged | truth) [K,K].

    Two groups: CLEAM. More: `invert`, which is CLEAM again for two.
    """
    if len(p) == 2:
        share = cleam(float(p[0]), float(conditional[0, 0]), float(conditional[1, 1]))
        return np.array([share, 1 - share])
    return invert(p, conditional)


def explained(
    p: Shares, draws: NDArray[np.float64], counts: NDArray[np.int64], *, seed: int, confidence: float = CONFIDENCE
) -> tuple[Shares, NDArray[np.float64], list[Interval]]:
    """True shares [K] that explain judged shares p [K], bootstrap draws of them, and their intervals.

    `counts` [K,K] are held-out images by truth and verdict. Images (`draws` [R,K]) and the judge's error rates are
    redrawn together, so that the intervals hold both uncertainties.
    """
    found = correct(p, conditional(counts))
    errors = confusion_draws(counts, draws=len(draws), seed=seed)
    redrawn = np.stack([invert(draw, error) for draw, error in zip(draws, errors, strict=True)])
    # A judge that made no error on held-out images may make some: its draws lie to one side of the estimate.
    bounds = zip(percentile(redrawn, confidence), found, strict=True)
    return found, redrawn, [(float(min(low, x)), float(max(high, x))) for (low, high), x in bounds]


def invert(p: Shares, conditional: Shares) -> Shares:
    """The point x [K] of the simplex that minimises ‖Cᵀx − p‖₂ for C = P(judged | truth) [K,K].

    Any C will do, unlike with CLEAM: draws of an uncertain confusion matrix may be no better than chance.
    """
    # On the simplex Cᵀx − p = Bx with B = Cᵀ − p1ᵀ. Appending the row Σx = 1 to Bx = 0 and rescaling the
    # non-negative solution to sum 1 gives the exact constrained minimum (Haskell and Hanson 1981).
    system = np.vstack([conditional.T - p[:, None], np.ones(len(p))])
    solution, _ = nnls(system, np.append(np.zeros(len(p)), 1.0))
    return np.asarray(solution / solution.sum(), dtype=np.float64)
