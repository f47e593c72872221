"""Weights of images under which every factor is even: iterative proportional fitting, also called raking.

W. E. Deming, F. F. Stephan, "On a least squares adjustment of a sampled frequency table when the expected marginal
totals are known", Annals of Mathematical Statistics 11 (1940) 427-444.

This one is over images and keeps to a limit: the search for factors must not lean on a few images. Cells of factors
and targets of requests are raked exactly, by `ddm_rt.raking`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

CAP = 8.0  # no image counts more than so many average ones
PASSES = 200


def raked(factors: Sequence[NDArray[np.int64]], cap: float = CAP) -> NDArray[np.float64]:
    """Weights [N] of mean 1, none above `cap`, under which the values of each of `factors` [N] have equal sums.

    Where the cap or a missing combination doesn't allow that, they are as near as the passes come.
    """
    weights = np.ones(len(factors[0]))
    for _ in range(PASSES):
        for label in factors:
            sums = np.bincount(label, weights=weights)
            weights = weights * (weights.sum() / (sums > 0).sum() / np.maximum(sums, 1e-12))[label]
        weights = _capped(weights, cap)
    return weights


def _capped(weights: NDArray[np.float64], cap: float) -> NDArray[np.float64]:
    """Scaled to mean 1, with what is above `cap` cut off and given to the others in proportion."""
    scaled: NDArray[np.float64] = weights / weights.mean()
    while (above := scaled > cap * (1 + 1e-12)).any():
        at_cap = above | (scaled >= cap)
        scaled[at_cap] = cap
        scaled[~at_cap] *= (len(scaled) - cap * at_cap.sum()) / scaled[~at_cap].sum()
    return scaled


def effective(weights: NDArray[np.float64]) -> float:
    """The effective number of images behind `weights` [N]: (Σ w)² / Σ w² (Kish)."""
    return float(weights.sum() ** 2 / (weights**2).sum())
