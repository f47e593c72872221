"""How good the images are: distances in a judge's feature space, and distances to the training set in pixels.

Frechet distance and KID here are in the feature space that is named beside them; neither is FID.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError

NEIGHBOURS = 5
MIN_PER_GROUP = 400
NEAR_PERCENTILE = 5
_BLOCK = 2048  # rows at a time, so that n² floats are never held

Features = NDArray[np.floating[Any]]  # [N, D]


class Quality(Frozen):
    """Generated images against reference images in one feature space."""

    n: int
    n_reference: int
    frechet: float
    kid: float
    precision: float
    recall: float
    coverage: float


class GroupQuality(Frozen):
    """Quality of one group at the agreed n, or None and the reason: never at another n."""

    group: str
    quality: Quality | None
    missing: int = 0
    reason: str | None = None


class Nearest(Frozen):
    """Distances to the nearest training image: root mean square over pixels, black to white = 1."""

    n: int
    mean: float
    p05: float
    held_out_n: int
    held_out_mean: float  # real images that were not trained on: the yardstick
    held_out_p05: float
    nearer_share: float  # generated images nearer than `held_out_p05`; real images score .05


def quality(x: Features, y: Features) -> Quality:
    """Every distance of generated features x [N,D] to reference features y [M,D]; N, M above 5."""
    precision, recall, coverage = prdc(x, y)
    return Quality(
        n=len(x),
        n_reference=len(y),
        frechet=frechet(x, y),
        kid=kid(x, y),
        precision=precision,
        recall=recall,
        coverage=coverage,
    )


def frechet(x: Features, y: Features) -> float:
    """‖μx − μy‖² + tr(Σx + Σy − 2(Σx Σy)^½) of Gaussians fitted to x [N,D] and y [M,D] (Heusel et al. 2017).

    The trace of the root is the sum of the roots of the eigenvalues of Σx^½ Σy Σx^½: symmetric and positive
    semidefinite, so singular covariances (n below D) need no complex root. It falls with n: compare at
    equal n only.
    """
    x, y = _check(x, y, 2)
    cov_x, cov_y = (np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y))
    values, vectors = np.linalg.eigh(cov_x)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_y @ root), 0, None)).sum()
    shift = x.mean(axis=0) - y.mean(axis=0)
    return float(max(0.0, shift @ shift + np.trace(cov_x) + np.trace(cov_y) - 2 * cross))


def kid(x: Features, y: Features) -> float:
    """Unbiased squared MMD with the kernel (x·y/D + 1)³ over all pairs, no subsets (Binkowski et al. 2018).

    It can be slightly negative.
    """
    x, y = _check(x, y, 2)
    return kernel_within(x) + kernel_within(y) - 2 * kernel_between(x, y)


def kernel_between(x: Features, y: Features) -> float:
    """Mean of KID's kernel over all pairs of x [N,D] and y [M,D]."""
    blocks = (x[i : i + _BLOCK] for i in range(0, len(x), _BLOCK))
    return float(sum(((block @ y.T / x.shape[1] + 1) ** 3).sum() for block in blocks)) / (len(x) * len(y))


def kernel_within(x: Features) -> float:
    """Mean of KID's kernel over the pairs of two different rows of x [N,D]."""
    own = float((((x * x).sum(axis=1) / x.shape[1] + 1) ** 3).sum())
    return (kernel_between(x, x) * len(x) ** 2 - own) / (len(x) * (len(x) - 1))


def prdc(x: Features, y: Features, k: int = NEIGHBOURS) -> tuple[float, float, float]:
    """Precision, recall (Kynkaanniemi et al. 2019), coverage (Naeem et al. 2020) of x [N,D] against y [M,D].

    A point is covered by a set if it lies within the distance of some member to that member's k-th
    neighbour in its own set. Coverage: the share of reference points whose own ball holds a generated one.
    """
    x, y = _check(x, y, k + 1)
    radius_x, radius_y = (_radii(z, k) for z in (x, y))
    precise, recalled, covered = np.empty(len(x), bool), np.zeros(len(y), bool), np.zeros(len(y), bool)
    for i in range(0, len(x), _BLOCK):
        part = slice(i, i + _BLOCK)
        distance = cdist(x[part], y)  # [block, M]
        within = distance <= radius_y
        precise[part] = within.any(axis=1)
        covered |= within.any(axis=0)
        recalled |= (distance <= radius_x[part, None]).any(axis=0)
    return float(precise.mean()), float(recalled.mean()), float(covered.mean())


def vendi(x: Features) -> float:
    """How many unlike images there seem to be: Friedman and Dieng 2023 (arXiv 2210.02410), eq. 1, cosine similarity.

    From 1, where all features x [N,D] point in one direction, to the smaller of N and D.
    """
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit.T @ unit / len(unit))  # those of the kernel matrix, but for zeros
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def per_group(
    features: Features,
    labels: NDArray[np.str_],
    reference: Features,
    reference_labels: NDArray[np.str_],
    groups: Sequence[str],
    n: int = MIN_PER_GROUP,
) -> tuple[GroupQuality, ...]:
    """Quality of each group's first n images against all reference images of that group.

    n is the same for every method that is compared, as these distances depend on it; a group with fewer
    images comes back without figures and with the reason.
    """
    results = []
    for group in groups:
        index = np.flatnonzero(labels == group)[:n]
        if missing := n - len(index):
            reason = f"{missing} of {n} images of {group} missing; generate more"
            results.append(GroupQuality(group=group, quality=None, missing=missing, reason=reason))
        else:
            found = quality(features[index], reference[reference_labels == group])
            results.append(GroupQuality(group=group, quality=found))
    return tuple(results)


def nearest(images: NDArray[np.uint8], train: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> Nearest:
    """Distances of generated and of held-out real images [N,H,W,3] to their nearest training images.

    Raises DdmError where sizes differ or a set is empty.
    """
    check_pictures(images, train=train, held_out=held_out)
    ours, real = distances(images, train), distances(held_out, train)
    bound = float(np.percentile(real, NEAR_PERCENTILE))
    return Nearest(
        n=len(ours),
        mean=float(ours.mean()),
        p05=float(np.percentile(ours, NEAR_PERCENTILE)),
        held_out_n=len(real),
        held_out_mean=float(real.mean()),
        held_out_p05=bound,
        nearer_share=float((ours < bound).mean()),
    )


def check_pictures(images: NDArray[np.uint8], **others: NDArray[np.uint8]) -> None:
    """Raises DdmError naming one of `others` that is empty, or holds images of another size than `images`."""
    for name, other in others.items():
        if other.shape[1:] != images.shape[1:] or len(other) == 0 or len(images) == 0:
            expected = f"expected images of size {list(images.shape[1:])}, at least one"
            raise DdmError(f"{name}: {list(other.shape)}; {expected}")


def distances(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Distance [N] of each image to the nearest of `others`: root mean square over pixels, black to white = 1."""
    index = _index(_pixels(others), 1)
    return np.asarray(index.kneighbors(_pixels(images))[0][:, 0] / np.sqrt(images[0].size), dtype=np.float64)


def _pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    return images.reshape(len(images), -1).astype(np.float32) / np.float32(255)


def _radii(z: Features, k: int) -> NDArray[np.float64]:
    """Distance [N] of each point to its k-th neighbour, itself not counted."""
    distance, _ = _index(z, k + 1).kneighbors(z)
    return np.asarray(distance[:, k], dtype=np.float64)


def _check(x: Features, y: Features, least: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    for name, z in (("generated", x), ("reference", y)):
        if z.ndim != 2 or len(z) < least or z.shape[1] != x.shape[-1]:
            raise DdmError(f"{name} features: {list(z.shape)}; expected [N,{x.shape[-1]}] with N at least {least}")
        if not np.isfinite(z).all():
            raise DdmError(f"{name} features: values that are not finite")
    return x.astype(np.float64), y.astype(np.float64)


def _index(z: Features, k: int) -> Any:
    """scikit-learn's index of rows. It takes seconds to import, and audits without a reference do without it."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(z)
