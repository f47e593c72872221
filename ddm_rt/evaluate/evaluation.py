"""One method's images, measured: shares with intervals, quality, nearness to the training set."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddm_rt.config import NULL_CODE, Frozen
from ddm_rt.errors import DdmError
from ddm_rt.evaluate import fairness
from ddm_rt.evaluate.continuous import Variation, variations
from ddm_rt.evaluate.fairness import Scores
from ddm_rt.evaluate.intervals import (
    CONFIDENCE,
    Interval,
    NoiseFloor,
    bootstrap_shares,
    fd_interval,
    noise_floor,
    stratified,
    wilson,
)
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.quality import MIN_PER_GROUP, GroupQuality, Nearest, Quality, nearest, per_group, quality

Images = NDArray[np.uint8]  # [N, H, W, 3]


@dataclass(frozen=True)
class LabelledImages:
    """Real images with their true labels: images uint8 [N,H,W,3], labels [N]."""

    images: Images
    labels: list[str]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8 or self.images.shape[3] != 3:
            found = f"{self.images.dtype} {list(self.images.shape)}"
            raise DdmError(f"reference images: {found}; expected uint8 [N,H,W,3]")
        if len(self.labels) != len(self.images):
            raise DdmError(f"reference: {len(self.labels)} labels for {len(self.images)} images")

    def balanced(self, groups: Sequence[str]) -> "LabelledImages":
        """The first m images of each group, m being the size of the smallest; DdmError if one has none."""
        labels = np.array(self.labels)
        m = min(int((labels == group).sum()) for group in groups)
        if m == 0:
            have = ", ".join(sorted(set(self.labels))) or "none"
            raise DdmError(f"reference: images of each of {', '.join(groups)} are needed; it has {have}")
        keep = np.sort(np.concatenate([np.flatnonzero(labels == group)[:m] for group in groups]))
        return LabelledImages(self.images[keep], [self.labels[i] for i in keep])


class Proportion(Frozen):
    """A share with its count and Wilson interval."""

    count: int
    share: float
    interval: Interval


class Balance(Frozen):
    """Group shares p, conditional on belonging to some group, with their intervals and scores."""

    shares: tuple[float, ...]
    intervals: tuple[Interval, ...]
    scores: Scores
    fd_l2_interval: Interval
    fd_ddm_interval: Interval | None  # two groups with an even target


class CodeRow(Frozen):
    """What the images of one code were judged as; shares are conditional on belonging to some group."""

    code: int
    n: int
    counts: tuple[int, ...]  # per group
    neither: int
    shares: tuple[float, ...] | None  # None where all are neither


class JudgeIdentity(Frozen):
    """Which judge measured, and how often it is right on held-out real images (None if unknown)."""

    name: str
    sha256: str
    classes: tuple[str, ...]
    feature_space: str
    accuracy: float | None


class Evaluation(Frozen):
    """All figures of one method. Shares and overall quality are over the first `n` images."""

    schema_version: Literal[1] = 1
    n: int
    n_generated: int  # those after the first n only fill up the groups for per-group quality
    groups: tuple[str, ...]
    target: tuple[float, ...]
    confidence: float
    seed: int  # of bootstrap and Monte Carlo
    strata: Literal["none", "code"]  # shares' intervals: Wilson, or stratified by code
    class_counts: dict[str, int]  # over all classes of the judge
    group_counts: tuple[int, ...]
    neither: Proportion
    raw: Balance
    corrected: Balance | None  # for the judge's errors; None where the judge has no confusion matrix
    noise_floor: NoiseFloor  # at the number of images in some group
    spd: float | None  # for samplers that were asked for groups
    spd_interval: Interval | None = None
    quality: Quality
    min_per_group: int
    per_group: tuple[GroupQuality, ...]
    nearest: Nearest | None
    codes: tuple[CodeRow, ...]
    judge: JudgeIdentity
    variation: tuple[Variation, ...] = ()  # of continuous attributes, against the balanced reference


def evaluate(
    images: Images,
    codes: NDArray[np.int64] | None,
    judge: Judge,
    groups: Sequence[str],
    reference: LabelledImages,
    train: Images | None = None,
    *,
    min_per_group: int = MIN_PER_GROUP,
    n: int | None = None,
    target: Sequence[float] | None = None,
    conditions: Sequence[str] | None = None,
    attributes: Sequence[str] = (),
    seed: int = 0,
) -> Evaluation:
    """Measure generated images uint8 [N,H,W,3].

    Args:
        codes: int64 [N] for a quota sampler, whose intervals are then stratified by code; None, or all -1
            (the null code), for independent draws.
        groups: classes of the judge; everything else is "neither".
        reference: held-out real images; equally many of each group are used.
        train: the generator's training images, for nearest-neighbour distances.
        min_per_group: n of the per-group quality, the same for all methods that are compared.
        n: how many images the shares and overall quality are over (all by default). Images after them count
            only for per-group quality, so that a method can generate until its rarest group is full.
        target: wanted shares, positive and summing to 1; even by default.
        conditions: the group that each image was asked to be, for label-conditioned samplers; gives SPD.
        attributes: continuous ones, `slant`, `skin_luminance` or MODULE:FUNCTION, compared over the first n images.

    Raises:
        DdmError: wrong shapes, groups unknown to judge or reference, no image in any group, a bad target.
    """
    n = len(images) if n is None else n
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[3] != 3:
        raise DdmError(f"images: {images.dtype} {list(images.shape)}; expected uint8 [N,H,W,3]")
    if not 1 <= n <= len(images):
        raise DdmError(f"n is {n}; expected 1 to {len(images)}, the number of images")
    for name, values in (("codes", codes), ("conditions", conditions)):
        if values is not None and len(values) != len(images):
            raise DdmError(f"{name}: {len(values)} for {len(images)} images; expected one each")
    fairness.check_known(groups, judge.classes)
    u = np.array(target if target is not None else [1 / len(groups)] * len(groups), dtype=np.float64)
    if u.shape != (len(groups),) or not (u > 0).all() or not np.isclose(u.sum(), 1):
        raise DdmError(f"target is {u.tolist()}; expected {len(groups)} positive shares that sum to 1")
    if codes is not None and (codes[:n] == NULL_CODE).all():
        codes = None
    balanced = reference.balanced(groups)
    verdicts, real = judge.predict(images), judge.predict(balanced.images)
    labels, real_labels = verdicts.labels[:n], np.array(balanced.labels)
    strata = fairness.count_table(labels, groups, None if codes is None else codes[:n])
    counts = strata.sum(axis=0)
    outside = n - int(counts.sum())
    wanted = None if conditions is None else np.array(conditions[:n])
    raw, corrected = _balances(strata, judge, groups, u, seed)
    parity = None if wanted is None else fairness.spd(labels == wanted, wanted, groups)
    return Evaluation(
        n=n,
        n_generated=len(images),
        groups=tuple(groups),
        target=tuple(u.tolist()),
        confidence=CONFIDENCE,
        seed=seed,
        strata="none" if codes is None else "code",
        class_counts={name: int((labels == name).sum()) for name in judge.classes},
        group_counts=tuple(counts.tolist()),
        neither=Proportion(count=outside, share=outside / n, interval=wilson(outside, n)),
        raw=raw,
        corrected=corrected,
        noise_floor=noise_floor(int(counts.sum()), u, seed=seed),
        spd=None if parity is None else parity[0],
        spd_interval=None if parity is None else parity[1],
        quality=quality(verdicts.features[:n], real.features),
        min_per_group=min_per_group,
        per_group=per_group(verdicts.features, verdicts.labels, real.features, real_labels, groups, min_per_group),
        nearest=None if train is None else nearest(images[:n], train, balanced.images),
        codes=() if codes is None else _code_rows(codes[:n], strata),
        judge=JudgeIdentity.model_validate(judge, from_attributes=True),
        variation=variations(attributes, images[:n], balanced.images, seed=seed),
    )


def _balances(
    strata: NDArray[np.int64], judge: Judge, groups: Sequence[str], u: fairness.Shares, seed: int
) -> tuple[Balance, Balance | None]:
    """Raw and judge-corrected shares from counts [S,K]."""
    p = fairness.shares(strata.sum(axis=0), groups)
    draws = bootstrap_shares(strata, seed=seed)  # [R, K]
    sizes = strata.sum(axis=1)
    raw = _balance(p, [stratified(column, sizes) for column in strata.T], draws, u)
    if judge.confusion is None:
        return raw, None
    counts = fairness.group_confusion(judge.confusion, judge.classes, groups)
    found, redrawn, intervals = fairness.explained(p, draws, counts, seed=seed + 1)
    return raw, _balance(found, intervals, redrawn, u)


def _balance(
    p: fairness.Shares, intervals: Sequence[Interval], draws: NDArray[np.float64], u: fairness.Shares
) -> Balance:
    fd = fd_interval(p, draws, u)
    even_pair = len(u) == 2 and np.allclose(u, 0.5)
    return Balance(
        shares=tuple(p.tolist()),
        intervals=tuple(intervals),
        scores=fairness.scores(p, u),
        fd_l2_interval=fd,
        fd_ddm_interval=(fd[0] / 2**0.5, fd[1] / 2**0.5) if even_pair else None,
    )


def _code_rows(codes: NDArray[np.int64], strata: NDArray[np.int64]) -> tuple[CodeRow, ...]:
    rows = []
    for (code, size), counts in zip(np.stack(np.unique(codes, return_counts=True), 1), strata, strict=True):
        inside = int(counts.sum())
        rows.append(
            CodeRow(
                code=int(code),
                n=int(size),
                counts=tuple(counts.tolist()),
                neither=int(size) - inside,
                shares=tuple((counts / inside).tolist()) if inside else None,
            )
        )
    return tuple(rows)
