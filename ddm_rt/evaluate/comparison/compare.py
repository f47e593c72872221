"""`ddm-rt compare`: does B keep A's shares? The same seeds and codes, a judge's labels, and what else changed."""

import math
import statistics
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance, DataConfig, Frozen, parse
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.calibrated import Calibrated, calibrated
from ddm_rt.evaluate.comparison.kept import BLOCKS, FRECHET_RATIO, Ratio, blocks_of, ratios
from ddm_rt.evaluate.comparison.paired import MARGIN, Paired, check, paired
from ddm_rt.evaluate.comparison.sides import (
    Facts,
    Images,
    Side,
    check_side,
    make_side,
    open_side,
    read_side,
    seconds_of_requests,
)
from ddm_rt.evaluate.evaluation import JudgeIdentity
from ddm_rt.evaluate.fairness import check_known
from ddm_rt.evaluate.intervals import CONFIDENCE, Interval
from ddm_rt.evaluate.judge import Judge, Verdicts
from ddm_rt.evaluate.quality import NEIGHBOURS, Features, frechet, kernel_between, kernel_within, kid
from ddm_rt.evaluate.run import NO_TEXT, Text, labelled
from ddm_rt.progress import OnStep
from ddm_rt.sample.pipeline import Pipeline

ROUNDS, TIMED = 5, 16


class ImageChange(Frozen):
    """Grey levels between the two images of a pair, over all pixels and channels."""

    mean: float
    p95: float  # over images, of their mean difference
    largest: int
    psnr_db: float | None  # None where nothing differs
    off_by_more_than_one: float  # share of the values
    unchanged: int  # images that are the same in every byte


class QualityChange(Frozen):
    """Distances to the reference images of one group ("all": of all), B − A with a 95 % interval.

    Both sides count the same number of images, the first n of the group in each. None: too few images, see `reason`.
    """

    group: str
    n: int
    frechet: tuple[float, float] | None = None  # A, B
    frechet_change: Interval | None = None
    kid: tuple[float, float] | None = None
    kid_change: Interval | None = None
    reason: str | None = None


class Speed(Frozen):
    """Medians of interleaved rounds on this machine."""

    n: int  # images of each round's request
    seconds_per_image: tuple[float, float]  # A, B
    ratio: float  # A over B: above 1, B is faster
    ratio_range: Interval  # smallest and largest of a round


class Comparison(Frozen):
    """All figures of one comparison."""

    schema_version: Literal[1] = 1
    a: Facts
    b: Facts
    seed: int | None  # of the request; None where images were read
    groups: tuple[str, ...]
    reference: str | None
    judge: JudgeIdentity
    labels: Paired
    images: ImageChange
    quality: tuple[QualityChange, ...]
    kept: tuple[Ratio, ...] = ()  # of quality and diversity; empty without reference images
    calibrated: Calibrated | None = None  # where a calibration of A's drew the codes
    speed: Speed | None


def compare(
    side_a: Side,
    side_b: Side,
    *,
    judge: Judge,
    groups: Sequence[str],
    reference: str | None = None,
    n: int = 1000,
    seed: int = 0,
    target: str = "uniform",
    balance: Balance = Balance.AUTO,
    text: Text = NO_TEXT,
    margin: float = MARGIN,
    frechet_ratio: float = FRECHET_RATIO,
    rounds: int = ROUNDS,
    timed: int = TIMED,
    on_step: OnStep | None = None,
) -> tuple[Comparison, tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """The figures, and the images uint8 [N,H,W,3] of both.

    Args:
        groups: two or more of the judge's classes; all others are "neither".
        reference: held-out labelled images for quality (`digits:3,8`, or a folder); None leaves quality out.
        n, seed, target, balance: of the request; a sampled directory sets its own, for the other side as well.
        text: arguments of `Pipeline.generate` about prompts; a side's own guidance_scale comes before.
        margin: the largest difference in a share of all images that counts as none.
        frechet_ratio: the largest ratio of B's Frechet distance to A's that counts as kept; above 1.
        rounds, timed: interleaved requests for `timed` images each; 0 rounds, or a sampled directory: no speed.

    Raises:
        DdmError: sides that can't be paired (other codes, seeds, prompts or sizes), a bad setting, group or reference,
            and prompts beside a sampled directory, which has its own.
        BackendUnavailable: a side's backend can't run here.
    """
    # All that can be refused is, before minutes are spent on sampling.
    check_groups(judge, groups, margin)
    check_ratio(frechet_ratio)
    pipelines = open_side(side_a), open_side(side_b)
    for side, pipeline in zip((side_a, side_b), pipelines, strict=True):
        if pipeline is not None:
            check_side(side, pipeline.bundle, text)
        elif given := [name for name in text if name != "guidance_scale"]:
            raise DdmError(
                f"{given[0]} is given, but {side.source} holds images, made already, with prompts of their own"
            )
    opened = [(side, pipe) for side, pipe in zip((side_a, side_b), pipelines, strict=True) if pipe is not None]
    _check_codes([pipeline.bundle for _, pipeline in opened])
    real = None if reference is None else labelled(reference, "reference", _data(side_a, pipelines)).balanced(groups)
    # B's images get the seeds, codes and prompts of A's, or A's those of B's images, made already.
    there = {k: read_side(side) for k, side in enumerate((side_a, side_b)) if pipelines[k] is None}
    codes, first_seed, asked = None, seed, dict(text)
    if brought := next(iter(there.values()), None):
        n, first_seed, codes = len(brought.images), brought.seed, brought.codes
        asked |= {"prompt": brought.facts.prompt, "negative_prompt": brought.facts.negative_prompt}
    for k, (side, pipeline) in enumerate(zip((side_a, side_b), pipelines, strict=True)):
        if pipeline is not None:
            assigned = {"target": target, "balance": balance} if codes is None else {"codes": codes}
            progress = None if on_step is None else _half(on_step, k)
            there[k] = make_side(side, pipeline, n, first_seed, asked={**asked, **assigned}, on_step=progress)
            codes = there[k].codes
    made = there[0], there[1]
    _check_pairs(made)
    verdicts = judge.predict(made[0].images), judge.predict(made[1].images)
    quality: tuple[QualityChange, ...] = ()
    kept: tuple[Ratio, ...] = ()
    if real is not None:
        known = judge.predict(real.images)
        drawn_by = list(zip(made[0].prompts, made[0].codes, strict=True))
        quality = quality_changes(verdicts, drawn_by, known, real.labels, groups)
        kept = ratios(verdicts, drawn_by, known.features, np.array(real.labels), groups, frechet_ratio)
    figures = Comparison(
        a=made[0].facts,
        b=made[1].facts,
        seed=seed if len(opened) == 2 else None,
        groups=tuple(groups),
        reference=reference,
        judge=JudgeIdentity.model_validate(judge, from_attributes=True),
        labels=paired(verdicts[0].labels, verdicts[1].labels, groups, margin=margin, seed=seed),
        images=image_change(made[0].images, made[1].images),
        quality=quality,
        kept=kept,
        calibrated=None
        if pipelines[0] is None
        else calibrated(pipelines[0].bundle, made[0], (verdicts[0].labels, verdicts[1].labels), groups, margin),
        speed=_speed(opened, timed, rounds, text) if rounds and len(opened) == 2 else None,
    )
    return figures, (made[0].images, made[1].images)


def check_groups(judge: Judge, groups: Sequence[str], margin: float) -> None:
    """Raises DdmError unless the groups are two or more of the judge's classes, and the margin is a share."""
    check_known(groups, judge.classes)
    check(groups, margin)


def check_ratio(frechet_ratio: float) -> None:
    """Raises DdmError unless it is a finite number above 1."""
    if not (frechet_ratio > 1 and math.isfinite(frechet_ratio)):
        raise DdmError(f"frechet_ratio is {frechet_ratio:g}; expected a number above 1")


def image_change(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> ImageChange:
    """Differences of a, b uint8 [N,H,W,3], pair by pair."""
    apart = np.abs(a.astype(np.int16) - b.astype(np.int16)).reshape(len(a), -1)
    squared = float((apart.astype(np.float64) ** 2).mean())
    return ImageChange(
        mean=float(apart.mean()),
        p95=float(np.quantile(apart.mean(axis=1), 0.95)),
        largest=int(apart.max()),
        psnr_db=float(10 * np.log10(255**2 / squared)) if squared else None,
        off_by_more_than_one=float((apart > 1).mean()),
        unchanged=int((apart == 0).all(axis=1).sum()),
    )


def quality_changes(
    verdicts: tuple[Verdicts, Verdicts],
    strata: Sequence[Hashable],
    real: Verdicts,
    real_labels: Sequence[str],
    groups: Sequence[str],
) -> tuple[QualityChange, ...]:
    """Quality of all images and of each group: verdicts of A and B over the same pairs, the prompt and code of each,
    and verdicts of reference images.
    """
    block = blocks_of(strata)
    labels, truth = (verdicts[0].labels, verdicts[1].labels), np.array(real_labels)
    everywhere = np.ones(len(labels[0]), bool)
    rows = [_quality_change("all", verdicts, block, (everywhere, everywhere), real.features)]
    for group in groups:
        chosen = labels[0] == group, labels[1] == group
        rows.append(_quality_change(group, verdicts, block, chosen, real.features[truth == group]))
    return tuple(rows)


def _quality_change(
    group: str,
    verdicts: tuple[Verdicts, Verdicts],
    block: NDArray[np.int64],
    chosen: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    reference: Features,
) -> QualityChange:
    """The interval is that of the jackknife over `BLOCKS` blocks of pairs, which keeps each pair together."""
    n = min(int(chosen[0].sum()), int(chosen[1].sum()))
    if n * (BLOCKS - 1) // BLOCKS <= NEIGHBOURS:
        return QualityChange(group=group, n=n, reason=f"{n} images of {group} in one of the two; more are needed")
    if len(reference) <= NEIGHBOURS:
        return QualityChange(group=group, n=n, reason=f"{len(reference)} reference images of {group}")
    reference = reference.astype(np.float64)

    def parts(kept: NDArray[np.bool_]) -> list[Features]:
        masks = chosen[0] & kept, chosen[1] & kept
        m = min(int(mask.sum()) for mask in masks)
        found = zip(verdicts, masks, strict=True)
        return [side.features[np.flatnonzero(mask)[:m]].astype(np.float64) for side, mask in found]

    def changes(kept: NDArray[np.bool_]) -> NDArray[np.float64]:
        """[2]: B − A of the Frechet distance and of KID, whose term of the reference alone cancels."""
        a, b = parts(kept)
        kernel = [kernel_within(x) - 2 * kernel_between(x, reference) for x in (a, b)]
        return np.array([frechet(b, reference) - frechet(a, reference), kernel[1] - kernel[0]])

    everywhere = np.ones(len(block), bool)
    whole = np.array([[distance(part, reference) for part in parts(everywhere)] for distance in (frechet, kid)])
    change, spread = whole[:, 1] - whole[:, 0], np.array([changes(block != k) for k in range(BLOCKS)])  # [blocks, 2]
    error = np.sqrt((BLOCKS - 1) / BLOCKS * ((spread - spread.mean(axis=0)) ** 2).sum(axis=0))
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, BLOCKS - 1) * error
    low, high = change - reach, change + reach
    return QualityChange(
        group=group,
        n=n,
        frechet=(float(whole[0, 0]), float(whole[0, 1])),
        frechet_change=(float(low[0]), float(high[0])),
        kid=(float(whole[1, 0]), float(whole[1, 1])),
        kid_change=(float(low[1]), float(high[1])),
    )


def _half(on_step: OnStep, k: int) -> OnStep:
    return lambda done, total: on_step(done + k * total, 2 * total)


def _check_codes(bundles: Sequence[Bundle]) -> None:
    if len(bundles) == 2 and bundles[0].path != bundles[1].path and bundles[0].codes != bundles[1].codes:
        raise DdmError(
            f"{bundles[0].path} and {bundles[1].path} have different codes, so their images are no pairs; "
            "`ddm-rt evaluate` compares what two trainings sample"
        )


def _check_pairs(made: tuple[Images, Images]) -> None:
    a, b = made
    names = f"{a.facts.label} and {b.facts.label}"
    if a.images.shape != b.images.shape:
        shapes = " and ".join(f"{len(side.images)} of {side.images.shape[2]}x{side.images.shape[1]}" for side in made)
        raise DdmError(f"{names}: images are {shapes}; expected as many of the same size")
    for what, left, right in (("seed", a.seeds, b.seeds), ("code", a.codes, b.codes), ("prompt", a.prompts, b.prompts)):
        for i, (x, y) in enumerate(zip(left, right, strict=True)):
            if x != y:
                raise DdmError(f"{names}: image {i} has {what} {x} and {y}; pairs need the same")


def _data(side: Side, pipelines: tuple[Pipeline | None, Pipeline | None]) -> DataConfig:
    """How reference images must be read to be like those of the sides."""
    for pipeline in pipelines:
        if pipeline is not None:
            return pipeline.bundle.training.run.data
    return parse(DataConfig, {"image_size": read_side(side).images.shape[1], "channels": 3}, side.source)


def _speed(sides: Sequence[tuple[Side, Pipeline]], n: int, rounds: int, text: Text) -> Speed:
    taken = [[seconds / n for seconds in own] for own in seconds_of_requests(sides, n, rounds, text)]
    ratios = [a / b for a, b in zip(*taken, strict=True)]
    medians = statistics.median(taken[0]), statistics.median(taken[1])
    return Speed(
        n=n, seconds_per_image=medians, ratio=statistics.median(ratios), ratio_range=(min(ratios), max(ratios))
    )
