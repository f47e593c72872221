"""Code weights from audits of a pool of images with known groups: `ddm_rt.sample`'s formulas, many draws quickly."""

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample.calibration import posterior
from ddm_rt.sample.calibration.tilt import tilt


def weights(counts: NDArray[np.int64], target: NDArray[np.float64], base: NDArray[np.float64]) -> NDArray[np.float64]:
    """The code weights [K] for audited counts [K,G], close to `base`; where none reach the target, the nearest."""
    p = posterior.mean(counts, posterior.fitted_prior(counts))
    found = tilt(p, target, base)
    return found.weights if found.reached else tilt(p, target, base, slack=1e-3).weights


def audit(
    codes: NDArray[np.int64],
    groups: NDArray[np.int64],
    n: int,
    num_groups: int,
    rng: np.random.Generator,
    base: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights [K] from `n` audited images of a pool with `codes` [N] and `groups` [N], and the audited counts [K,G].

    The first half is stratified over the codes, the second follows the weights that the first gives. `base` [K] are
    the weights without a target: even ones where it is None.
    """
    num_codes = int(codes.max()) + 1
    pools = [list(rng.permutation(np.flatnonzero(codes == k))) for k in range(num_codes)]
    counts = np.zeros((num_codes, num_groups), np.int64)
    even = np.full(num_codes, 1 / num_codes)
    base, target = even if base is None else base, np.full(num_groups, 1 / num_groups)

    def look(number: int, shares: NDArray[np.float64]) -> None:
        for k, wanted in enumerate(_apportion(number, shares)):
            for image in pools[k][:wanted]:
                counts[k, groups[image]] += 1
            pools[k] = pools[k][wanted:]

    look(n - n // 2, even)
    look(n // 2, weights(counts, target, base))
    return weights(counts, target, base), counts


def _apportion(n: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that sum to n, by largest remainder."""
    exact = shares / shares.sum() * n
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: n - whole.sum()]] += 1
    return whole
