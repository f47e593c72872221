"""What a classifier's confidence is worth, and what labels a representation holds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.intervals import CONFIDENCE, Interval, wilson

BINS = 15
FOLDS = 5
_RESAMPLES = 1000


class Bin(Frozen):
    """Predictions of similar confidence."""

    n: int
    confidence: float
    accuracy: float


class ConfidenceError(Frozen):
    """Expected calibration error: how far confidence is from accuracy, over bins of equal width."""

    n: int
    accuracy: float
    confidence: float
    ece: float
    smooth_ece: float  # without bins
    floor_mean: float  # of a classifier that is right exactly as often as it says, with the same confidences
    floor_p95: float
    bins: tuple[Bin, ...]


class LinearProbe(Frozen):
    """How well a linear classifier reads a label from features of images that it wasn't fitted on."""

    n: int
    dimensions: int
    accuracy: float
    interval: Interval
    balanced_accuracy: float  # mean over the labels
    chance: float  # of always naming the most frequent label


def calibration_error(
    probabilities: NDArray[np.floating[Any]], truth: NDArray[np.int64], *, bins: int = BINS, seed: int = 0
) -> ConfidenceError:
    """ECE = Σ_b n_b/n·|accuracy_b − confidence_b| (Guo et al. 2017, arXiv 1706.04599, eq. 3).

    probabilities [N,K] whose rows sum to 1, truth [N] as column numbers. ECE is above 0 for a perfect classifier too,
    the more so the fewer images: `floor_mean` and `floor_p95` say how far. Raises DdmError on other shapes or values.
    """
    if probabilities.ndim != 2 or truth.shape != probabilities.shape[:1] or len(truth) == 0:
        shapes = f"{list(probabilities.shape)} and {list(truth.shape)}"
        raise DdmError(f"probabilities and truth: {shapes}; expected [N,K] and [N], N at least 1")
    total = probabilities.astype(np.float64).sum(axis=1)
    if not (probabilities >= 0).all() or not np.allclose(total, 1, atol=1e-3):
        raise DdmError("probabilities: rows must not be negative and must sum to 1")
    if truth.min() < 0 or truth.max() >= probabilities.shape[1]:
        raise DdmError(f"truth: {truth.min()} to {truth.max()}; expected columns 0 to {probabilities.shape[1] - 1}")
    confidence = np.minimum(probabilities.max(axis=1).astype(np.float64), 1)
    right = probabilities.argmax(axis=1) == truth
    where = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    rng = np.random.default_rng(seed)
    floor = [_ece(confidence, rng.random(len(truth)) < confidence, where, bins) for _ in range(_RESAMPLES)]
    members = [where == b for b in range(bins)]
    return ConfidenceError(
        n=len(truth),
        accuracy=float(right.mean()),
        confidence=float(confidence.mean()),
        ece=_ece(confidence, right, where, bins),
        smooth_ece=smooth_ece(confidence, right),
        floor_mean=float(np.mean(floor)),
        floor_p95=float(np.quantile(floor, 0.95)),
        bins=tuple(
            Bin(n=int(inside.sum()), confidence=float(confidence[inside].mean()), accuracy=float(right[inside].mean()))
            for inside in members
            if inside.any()
        ),
    )


def smooth_ece(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """smECE of confidences [N] in [0, 1] and whether each was right, bool [N].

    J. Błasiok, P. Nakkiran, "Smooth ECE" (arXiv 2309.12236, definition 3): ∫ |Σ_i K_σ(t, p_i)(y_i − p_i)/N| dt with a
    Gaussian kernel that is reflected at 0 and 1, at the σ for which the integral is σ. No bins, and no jump as p moves.
    """
    points = np.linspace(0, 1, 1001)
    gaps = np.bincount(np.rint(confidence * 1000).astype(np.int64), weights=right - confidence, minlength=1001)

    def integral(width: float) -> float:
        reflected = [points, -points, 2 - points]  # the kernel's mass beyond an end comes back from it
        kernel = sum(np.exp(-0.5 * ((points[:, None] - at) / width) ** 2) for at in reflected)
        smooth = kernel @ gaps / (width * np.sqrt(2 * np.pi) * len(right))
        return float(np.trapezoid(np.abs(smooth), points))

    low, high = 1e-3, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if integral(middle) > middle else (low, middle)
    return high


def linear_probe(
    features: NDArray[np.floating[Any]], labels: Sequence[str], *, folds: int = FOLDS, seed: int = 0
) -> LinearProbe:
    """Cross-validated accuracy of logistic regression on standardised features [N,D], each image judged when left out.

    The interval is Wilson's. For codes, give them as one column each (one-hot). Raises DdmError on other shapes, values
    that aren't finite, a single label, or a label with fewer images than folds.
    """
    names = np.array(labels)
    if features.ndim != 2 or len(features) != len(names) or not np.isfinite(features).all():
        raise DdmError(f"probe: features {list(features.shape)} for {len(names)} labels; expected finite [N,D]")
    found, counts = np.unique(names, return_counts=True)
    if len(found) < 2 or counts.min() < folds:
        raise DdmError(
            f"probe: labels {dict(zip(found.tolist(), counts.tolist(), strict=True))}; expected two or more "
            f"with at least {folds} images each"
        )
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    right = cross_val_predict(model, features.astype(np.float64), names, cv=split) == names
    return LinearProbe(
        n=len(names),
        dimensions=features.shape[1],
        accuracy=float(right.mean()),
        interval=wilson(int(right.sum()), len(names), CONFIDENCE),
        balanced_accuracy=float(np.mean([right[names == name].mean() for name in found])),
        chance=float(counts.max() / len(names)),
    )


def _ece(confidence: NDArray[np.float64], right: NDArray[np.bool_], where: NDArray[np.int64], bins: int) -> float:
    gaps = np.bincount(where, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))
