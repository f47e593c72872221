"""How sure a group's share or a score is: intervals that know the sampler's strata, and the floor that chance sets.

A table holds counts: one row per stratum (code), one column per group. An unstratified sampler has one row.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ddm_rt.errors import DdmError

CONFIDENCE = 0.95
RESAMPLES = 2000
FLOOR_DRAWS = 20_000

Interval = tuple[float, float]


class NoiseFloor(NamedTuple):
    """What a sampler that draws groups independently at the target scores with n images."""

    fd_l2_mean: float
    fd_l2_p95: float
    share_mean: tuple[float, ...]  # per group, mean of |p - target|: FD_ddm for two even groups
    share_p95: tuple[float, ...]  # per group, 95th percentile of |p - target|


def wilson(count: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval (1927) for a binomial share. Raises DdmError unless 0 <= count <= n, n >= 1."""
    if n < 1 or not 0 <= count <= n:
        raise DdmError(f"share of {count} in {n}; expected 0 <= count <= n and n at least 1")
    # The interval takes no notice of the share that is tested; that of the images themselves is the quickest.
    found = stats.binomtest(count, n, count / n).proportion_ci(confidence, method="wilson")
    return (float(found.low), float(found.high))


def stratified(counts: NDArray[np.int64], sizes: NDArray[np.int64], confidence: float = CONFIDENCE) -> Interval:
    """Interval of a quota sampler's share: `counts` [S] of `sizes` [S] images in each stratum.

    The variance of p = Σ_k w_k p_k with fixed w_k = n_k/n is Σ_k w_k² p_k(1−p_k)/n_k, which is 0 when every code is
    pure. Safe in small samples: each stratum gets its Wilson interval (l_k, u_k), and the distances add in square,
    p − √Σ w_k²(p_k − l_k)² to p + √Σ w_k²(u_k − p_k)² (Newcombe 1998; Zou and Donner 2008, "MOVER"). One stratum gives
    Wilson's interval; no stratum has zero width. Strata without images are left out.
    """
    used = sizes > 0
    counts, sizes = counts[used], sizes[used]
    if not len(sizes):
        raise DdmError("strata: no images in any of them")
    weights, shares = sizes / sizes.sum(), counts / sizes
    bounds = np.array([wilson(int(c), int(n), confidence) for c, n in zip(counts, sizes, strict=True)])  # [S, 2]
    below, above = np.linalg.norm(weights[:, None] * (bounds - shares[:, None]), axis=0)
    p = float(weights @ shares)
    return (float(max(0.0, p - below)), float(min(1.0, p + above)))


def bootstrap_shares(table: NDArray[np.int64], *, seed: int, resamples: int = RESAMPLES) -> NDArray[np.float64]:
    """Bootstrap draws [R,K] of the shares of `table` [S,K]: images are redrawn within each stratum.

    Resampling a pure stratum would always give itself back, so its probabilities get half a count per group
    first (Jeffreys), and the draws are moved back so that they centre on the observed shares.
    """
    table = table[table.sum(axis=1) > 0]
    n, num_groups = int(table.sum()), table.shape[1]
    if n == 0:
        raise DdmError("table: no images in any group")
    sizes = table.sum(axis=1)
    smooth = (table + 0.5) / (sizes[:, None] + num_groups / 2)  # [S, K]
    rng = np.random.default_rng(seed)
    drawn = sum(rng.multinomial(size, p, size=resamples) for size, p in zip(sizes, smooth, strict=True))
    moved = np.clip(drawn / n - sizes @ smooth / n + table.sum(axis=0) / n, 0, None)
    return np.asarray(moved / moved.sum(axis=1, keepdims=True), dtype=np.float64)


def percentile(draws: NDArray[np.float64], confidence: float = CONFIDENCE) -> list[Interval]:
    """Percentile interval of each column of bootstrap draws [R,K]."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def fd_interval(p: NDArray[np.float64], draws: NDArray[np.float64], target: NDArray[np.float64]) -> Interval:
    """Interval of FD_L2 = ‖target − p‖₂ from bootstrap draws [R,K] of p [K].

    FD folds at 0, so percentiles of redrawn FDs never cover the 0 of a sampler on target. FD changes by no more than p
    moves: with r the percentile of ‖draw − p‖₂, the interval is FD ± r, cut at 0 and at the largest possible FD.
    """
    fd = float(np.linalg.norm(target - p))
    radius = float(np.quantile(np.linalg.norm(draws - p, axis=1), CONFIDENCE))
    largest = float(np.linalg.norm(np.eye(len(target)) - target, axis=1).max())
    return (max(0.0, fd - radius), min(max(fd, largest), fd + radius))


def noise_floor(n: int, target: NDArray[np.float64], *, seed: int = 0) -> NoiseFloor:
    """The scores that chance alone gives: n images, groups drawn independently from `target` [K].

    Exact binomial for each group's share, and so for FD with two groups; seeded Monte Carlo for FD_L2 with
    more. The 95th percentile is the smallest value that is not exceeded with a probability of .95.
    """
    if n < 1:
        raise DdmError(f"n is {n}; expected at least 1")
    exact = [_binomial_floor(n, float(u)) for u in target]
    if len(target) == 2:
        mean, p95 = (float(np.sqrt(2)) * value for value in exact[0])
    else:
        shares = np.random.default_rng(seed).multinomial(n, target, size=FLOOR_DRAWS) / n
        fd = np.linalg.norm(shares - target, axis=1)
        mean, p95 = float(fd.mean()), float(np.quantile(fd, 0.95, method="inverted_cdf"))
    return NoiseFloor(mean, p95, tuple(m for m, _ in exact), tuple(q for _, q in exact))


def _binomial_floor(n: int, u: float) -> tuple[float, float]:
    """Mean and 95th percentile of |X/n − u|, X ~ Binomial(n, u)."""
    counts = np.arange(n + 1)
    mass, distance = stats.binom.pmf(counts, n, u), np.abs(counts / n - u)
    order = np.argsort(distance, kind="stable")
    reached = int(np.searchsorted(np.cumsum(mass[order]), 0.95))
    return float(mass @ distance), float(distance[order[reached]])
