"""Does B keep A's quality and diversity? Ratios of B's figures to A's against real images, with intervals and verdicts.

Quality is the Frechet distance. Diversity is, for each group, precision, recall and the Vendi score, each over as many
images of both sides. A figure's interval is that of the jackknife of its logarithm over blocks of pairs: the two images
of a pair are left out together, and each block has its part of every code.
"""

import math
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial.distance import cdist

from ddm_rt.config import Frozen
from ddm_rt.evaluate.comparison.paired import CONFIDENCE, POWER
from ddm_rt.evaluate.intervals import Interval
from ddm_rt.evaluate.judge import Verdicts
from ddm_rt.evaluate.quality import NEIGHBOURS, Features, frechet, vendi

BLOCKS = 20
FRECHET_RATIO = 1.15  # B's distance over A's: up to this counts as kept
DIVERSITY_RATIO = 0.95  # B's figure over A's: from this on
# Images in a part of a group, whose recall is the mean over its parts. The few samples nearest to a real image decide
# whether it is recalled, however many samples there are. So the interval of one large sample would never narrow.
RECALL_IMAGES = 2500
_FAR = 4 * NEIGHBOURS  # neighbours that are looked up, so that the fifth is among those of the other blocks

Kind = Literal["quality", "diversity"]
Kept = Literal["equivalent", "changed", "undecided"]


class Ratio(Frozen):
    """One figure of B over A's, and whether it was kept: the whole 90 % interval lies on the good side of the bound."""

    kind: Kind
    figure: str
    group: str  # "all": of all images
    n: int  # images of each side
    a: float
    b: float
    real: float | None = None  # all real images' own Vendi score: A may have more variety than they have, or less
    ratio: float
    interval: Interval  # 90 %
    bound: float
    decision: Kept
    n_needed: int | None = None  # images of a new run that would decide with 80 % probability; None where this one has


class _Figure(NamedTuple):
    kind: Kind
    name: str
    whole: float
    without: NDArray[np.float64]  # [BLOCKS]: without one block of pairs each
    # The error falls with the root of the number of images, and is what this many times the images here would have.
    counted: float = 1.0
    real: float | None = None  # see Ratio


def ratios(
    verdicts: tuple[Verdicts, Verdicts],
    strata: Sequence[Hashable],
    real: Features,
    real_labels: NDArray[np.str_],
    groups: Sequence[str],
    frechet_ratio: float = FRECHET_RATIO,
) -> tuple[Ratio, ...]:
    """The Frechet distance of all images and of each group, and each group's diversity.

    `verdicts` are a judge's of n pairs, and `strata` [n] what each pair was drawn by, its prompt and code; `real`,
    `real_labels` are features [M,D] and labels [M] of real images. A group that one side has too few images of is left
    out: `quality_changes` says so.
    """
    n = len(verdicts[0].labels)
    rank = ranks_of(strata)
    found: list[Ratio] = []
    for group in ("all", *groups):
        index = [np.arange(n) if group == "all" else np.flatnonzero(side.labels == group) for side in verdicts]
        reference = real if group == "all" else real[real_labels == group]
        least = min(map(len, index))
        if least * (BLOCKS - 1) // BLOCKS <= _FAR or len(reference) <= NEIGHBOURS:
            continue
        sides = [
            list(_figures(side.features[own[:least]], rank[own[:least]], reference, whole=group == "all"))
            for side, own in zip(verdicts, index, strict=True)
        ]
        for a, b in zip(*sides, strict=True):
            bound = frechet_ratio if a.kind == "quality" else DIVERSITY_RATIO
            if min(a.whole, *a.without) > 0:  # else there is nothing that B could keep
                found.append(_ratio(group, least, a, b, bound, n))
    return tuple(found)


def blocks_of(strata: Sequence[Hashable]) -> NDArray[np.int64]:
    """The block [n] of each pair. Prompts take turns, and a quota gives each code its number of images in any sample.
    So each block has the same part of every stratum, and leaving one out moves no shares. Blocks by position would:
    codes take turns too. Where no quota drew the codes, intervals are for these numbers of images of each.
    """
    return ranks_of(strata) % BLOCKS


def ranks_of(strata: Sequence[Hashable]) -> NDArray[np.int64]:
    """The number [n] of each pair where those of one stratum stand together."""
    numbers = {stratum: number for number, stratum in enumerate(dict.fromkeys(strata))}
    rank = np.empty(len(strata), np.int64)
    rank[np.argsort([numbers[stratum] for stratum in strata], kind="stable")] = np.arange(len(strata))
    return rank


def decision(found: Sequence[Ratio], kind: Kind) -> Kept | None:
    """Of all figures of one kind: changed where one has, equivalent where all are. None where there is none."""
    return gravest({ratio.decision for ratio in found if ratio.kind == kind})


def gravest(decisions: Collection[Kept]) -> Kept | None:
    """None where there is none."""
    order: tuple[Kept, ...] = ("changed", "undecided", "equivalent")
    return next((each for each in order if each in decisions), None)


def _ratio(group: str, least: int, a: _Figure, b: _Figure, bound: float, n: int) -> Ratio:
    """`bound` above 1 is the largest ratio that counts as kept, below 1 the smallest."""
    shared: dict[str, Any] = {"kind": a.kind, "figure": a.name, "group": group, "n": least, "bound": bound}
    shared |= {"a": a.whole, "b": b.whole, "real": a.real}
    if min(b.whole, *b.without) <= 0:  # as with no image that is like a real one
        best: Kept = "equivalent" if a.kind == "quality" else "changed"
        return Ratio(**shared, ratio=b.whole / a.whole, interval=(0.0, 1.0), decision=best)
    change, without = math.log(b.whole / a.whole), np.log(b.without / a.without)
    error = math.sqrt((BLOCKS - 1) / BLOCKS * float(((without - without.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, BLOCKS - 1)) * error
    # As if a smaller ratio were the better one.
    sign = 1 if bound > 1 else -1
    spare = sign * (math.log(bound) - change)
    verdict: Kept = "equivalent" if spare > reach else "changed" if spare < -reach else "undecided"
    needed = None
    if verdict == "undecided":
        per_error = float(stats.norm.ppf((1 + CONFIDENCE) / 2) + stats.norm.ppf(POWER))
        needed = math.ceil(min(n * a.counted * (per_error * error / max(abs(spare), 1e-9)) ** 2, 1e9))
    interval = (math.exp(change - reach), math.exp(change + reach))
    return Ratio(**shared, ratio=math.exp(change), interval=interval, decision=verdict, n_needed=needed)


def _figures(x: Features, rank: NDArray[np.int64], reference: Features, *, whole: bool) -> Iterator[_Figure]:
    """Figures of features x [N,D], whose pairs have these `ranks_of` [N], against real ones [M,D]."""
    block = rank % BLOCKS
    x, reference = x.astype(np.float64), reference.astype(np.float64)

    def jackknifed(kind: Kind, name: str, of: Callable[[NDArray[np.bool_]], float], **more: float) -> _Figure:
        without = np.array([of(block != k) for k in range(BLOCKS)])
        return _Figure(kind, name, of(np.ones(len(x), bool)), without, **more)

    yield jackknifed("quality", "Frechet distance", lambda kept: frechet(x[kept], reference))
    if whole:
        return
    apart, own = cdist(x, reference), cdist(reference, reference)
    precise = (apart <= np.sort(own, axis=1)[:, NEIGHBOURS]).any(axis=1)
    parts = max(len(x) // RECALL_IMAGES, 1)
    part = np.argsort(np.argsort(rank)) // BLOCKS % parts  # each has as many images, and its part of every block
    recalls = [
        _recall(x[members], apart[members], members) for members in (np.flatnonzero(part == k) for k in range(parts))
    ]

    yield jackknifed("diversity", "precision", lambda kept: float(precise[kept].mean()))
    # Only whole parts make its error smaller.
    counted = parts * RECALL_IMAGES / len(x)
    yield jackknifed(
        "diversity", "recall", lambda kept: float(np.mean([recall(kept) for recall in recalls])), counted=counted
    )
    yield jackknifed("diversity", "Vendi score", lambda kept: vendi(x[kept]), real=vendi(reference))


def _recall(x: Features, apart: Features, images: NDArray[np.int64]) -> Callable[[NDArray[np.bool_]], float]:
    """The recall of those of some `images` that are kept: features x [P,D], P numbers of images of the N that a mask
    [N] is of, and distances to real ones `apart` [P,M].
    """
    between = cdist(x, x)
    order = np.argsort(between, axis=1)[:, 1 : _FAR + 1]  # itself not counted
    distance = np.take_along_axis(between, order, axis=1)

    def recall(mask: NDArray[np.bool_]) -> float:
        kept = mask[images]
        fifth = np.argmax(kept[order].cumsum(axis=1) == NEIGHBOURS, axis=1)
        radius = np.where(kept, distance[np.arange(len(x)), fifth], -1)
        return float((apart <= radius[:, None]).any(axis=0).mean())

    return recall
