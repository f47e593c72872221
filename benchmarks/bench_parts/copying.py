"""Whether a generator copies its training images: a test against real images that it never saw."""

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from ddm_rt.config import Frozen
from ddm_rt.evaluate.intervals import Interval, wilson
from ddm_rt.evaluate.quality import check_pictures, distances


class Copying(Frozen):
    """The three-sample test for data copying: `share` is .5 for a generator that copies nothing."""

    n: int
    of_each: int  # training and held-out images, equally many
    share: float  # generated images that are nearer to a training image than to any held-out one
    interval: Interval
    # The same where each generated image is first moved, by up to SHIFT pixels, to where it fits best: it finds copies
    # of training images that were moved in training. None: not measured.
    moved_share: float | None = None
    moved_interval: Interval | None = None
    # Different real images that are the nearest to a generated one, by Kish's effective number. Images that share their
    # nearest one fall on the same side together, so that `interval`, which takes them for independent, is too narrow.
    nearest: float | None = None


SHIFT = 2


def copying(images: NDArray[np.uint8], train: NDArray[np.uint8], held_out: NDArray[np.uint8]) -> Copying:
    """Whether generated images [N,H,W,3] lie nearer to training images than to as many real ones never trained on.

    Meehan, Chaudhuri and Dasgupta 2020 (arXiv 2004.05675). Unlike a distance to the training set, it isn't moved by how
    typical or how smooth the images are, since that brings them nearer to both sets alike. The first m images of each
    set are used, m being the size of the smaller. Raises DdmError as `nearest` does.
    """
    m = min(len(train), len(held_out))
    check_pictures(images, train=train, held_out=held_out)
    to_train, to_held_out = distances(images, train[:m]), distances(images, held_out[:m])
    count = int((to_train < to_held_out).sum())
    moved = int((_moved_distances(images, train[:m]) < _moved_distances(images, held_out[:m])).sum())
    n = len(images)
    return Copying(
        n=n,
        of_each=m,
        share=count / n,
        interval=wilson(count, n),
        moved_share=moved / n,
        moved_interval=wilson(moved, n),
        nearest=_effective(images, np.concatenate([train[:m], held_out[:m]])),
    )


def _effective(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> float:
    """The effective number of `others` that are the nearest to one of `images`."""
    flat = [each.reshape(len(each), -1).astype(np.float32) for each in (others, images)]
    index = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(flat[0]).kneighbors(flat[1])[1][:, 0]
    counts = np.bincount(index).astype(np.float64)
    return float(counts.sum() ** 2 / (counts**2).sum())


def _moved_distances(images: NDArray[np.uint8], others: NDArray[np.uint8]) -> NDArray[np.float64]:
    """As `distances`, the smallest over all moves of `images` by up to SHIFT pixels; edges are repeated."""
    height, width = images.shape[1:3]
    padded = np.pad(images, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    moves = [(y, x) for y in range(2 * SHIFT + 1) for x in range(2 * SHIFT + 1)]
    found = [distances(padded[:, y : y + height, x : x + width], others) for y, x in moves]
    return np.min(found, axis=0)
