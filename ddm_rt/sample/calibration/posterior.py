"""p(group | code) from audited counts: Dirichlet posteriors, and 90 % bounds.

Bounds, and what is in reach, come from the prior ½ on each group. It draws every code towards even shares, so weights
made with its means miss uneven targets, always to the same side. Weights are made with the means of a prior that is
fitted to all codes together and is at most ½: where the audited codes are nearly pure it is far smaller.
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PRIOR = 0.5  # Jeffreys' prior for two groups
_PRIORS = tuple(PRIOR / 2 ** (i / 2) for i in range(1, 11))  # down to 1/64
_PREFERENCE = 1e-6  # of log likelihood: rounding decides nothing
_NODES = 300  # of an integral: quantiles to 1e-9
Z90 = 1.6448536269514722  # standard normal: 90 % lie between -Z90 and Z90


def mean(counts: NDArray[np.int64], prior: float = PRIOR) -> Floats:
    """Posterior means [K, G] of counts [K, G]."""
    return np.asarray((counts + prior) / (counts + prior).sum(axis=1, keepdims=True), np.float64)


def fitted_prior(counts: NDArray[np.int64]) -> float:
    """The prior on each group that makes counts [K, G] likeliest, at most ½ (Minka 2000, "Estimating a Dirichlet").

    Counts that tell nothing of it, as those of one image a code, leave it at ½.
    """
    groups = counts.shape[1]
    best, most = PRIOR, _evidence(counts, PRIOR, groups)
    for prior in _PRIORS:
        if (evidence := _evidence(counts, prior, groups)) > most + _PREFERENCE:
            best, most = prior, evidence
    return best


def _evidence(counts: NDArray[np.int64], prior: float, groups: int) -> float:
    """log P(counts | prior): Dirichlet-multinomial, without the terms that don't hold the prior."""
    total = sum(math.lgamma(prior * groups) - math.lgamma(int(n) + prior * groups) for n in counts.sum(axis=1))
    return total + sum(math.lgamma(int(n) + prior) - math.lgamma(prior) for n in counts.ravel() if n)


def variance(counts: NDArray[np.int64]) -> Floats:
    """Posterior variances [K, G]: each group's own distribution is a beta distribution."""
    p, total = mean(counts), (counts + PRIOR).sum(axis=1, keepdims=True)
    return np.asarray(p * (1 - p) / (total + 1), np.float64)


def bounds(counts: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """The 5 % and 95 % quantiles [K, G] of each p(group | code).

    With p = sin²θ a beta distribution's density is that of sin^(2a-1) θ · cos^(2b-1) θ: smooth, so Gauss's rule does.
    """
    a = counts + PRIOR
    b = a.sum(axis=1, keepdims=True) - a
    log_gamma = np.vectorize(math.lgamma)
    scale = log_gamma(a + b) - log_gamma(a) - log_gamma(b)
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)

    def probability(angle: Floats) -> Floats:
        """That of less than sin² of `angle` [K, G]."""
        theta = angle[..., None] * (nodes + 1) / 2
        powers = (2 * a - 1)[..., None] * np.log(np.sin(theta)) + (2 * b - 1)[..., None] * np.log(np.cos(theta))
        return np.asarray(angle * (np.exp(scale[..., None] + powers) @ weights), np.float64)

    def quantile(q: float) -> Floats:
        low, high = np.zeros(a.shape), np.full(a.shape, np.pi / 2)
        for _ in range(50):
            middle = (low + high) / 2
            below = probability(middle) < q
            low, high = np.where(below, middle, low), np.where(below, high, middle)
        return np.asarray(np.sin(high) ** 2, np.float64)

    return quantile(0.05), quantile(0.95)


def extremes(p: Floats, spread: Floats, base: Floats) -> tuple[float, float]:
    """The lowest and highest share of one group that weights over the codes surely give: 90 % bounds.

    p, spread: posterior means and variances [K]. The highest is max_π m·π - z·√(Σπ²v), the largest lower bound that any
    mixture of codes has; its value λ solves Σ_k (m_k - λ)₊²/v_k = z². The lowest likewise. What the weights `base` [K]
    are believed to give counts as reachable: nothing has to be moved for it.
    """
    now = float(base @ p)
    used = base > 0
    high = _largest_lower_bound(p[used], spread[used])
    low = 1 - _largest_lower_bound(1 - p[used], spread[used])
    return min(low, now), max(high, now)


def _largest_lower_bound(p: Floats, spread: Floats) -> float:
    low, high = float(p.min() - Z90 * np.sqrt(spread.max())), float(p.max())
    for _ in range(100):
        middle = (low + high) / 2
        if float((np.maximum(p - middle, 0) ** 2 / spread).sum()) > Z90**2:
            low = middle
        else:
            high = middle
    return low
