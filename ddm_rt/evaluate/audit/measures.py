"""Figures of an audit: shares of groups and what libraries make of them, and an outcome against a sensitive feature.

fairlearn and aif360 compare how often people of each group are *selected*. For one attribute of generated images, each
image is a place and each group a candidate for it: a group is selected where the image shows it. So a group's
`selection_rate` is its share. For an outcome (an image shows one group of an attribute, or not) and a sensitive feature
(the prompt, or another attribute), the selection rate is the share of the outcome among images with one value.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.evaluate import fairness
from ddm_rt.evaluate.audit.record import AttributeAudit, Figure, ParityAudit, Rate, Share
from ddm_rt.evaluate.evaluation import Proportion
from ddm_rt.evaluate.intervals import (
    CONFIDENCE,
    Interval,
    bootstrap_shares,
    fd_interval,
    noise_floor,
    percentile,
    stratified,
    wilson,
)

# Names of figures, and whose they are.
FD_DDM, FD_L2, SMALLEST = "FD_ddm", "FD_L2", "smallest_share"
DIFFERENCE, RATIO = "demographic_parity_difference", "demographic_parity_ratio"
SPD, IMPACT = "statistical_parity_difference", "disparate_impact"
LIBRARIES = {FD_DDM: "ddm_rt", FD_L2: "ddm_rt", SMALLEST: "ddm_rt", DIFFERENCE: "fairlearn", RATIO: "fairlearn"}
LIBRARIES |= {SPD: "aif360", IMPACT: "aif360"}
OF_PARITY = (DIFFERENCE, RATIO, SPD, IMPACT)


@dataclass(frozen=True)
class Labels:
    """What each image of N shows: "" where nobody said. A label outside `groups` belongs to none of them."""

    name: str
    of: tuple[str, ...]
    groups: tuple[str, ...]
    target: tuple[float, ...]
    labels: NDArray[np.str_]  # [N]
    confusion: NDArray[np.int64] | None = None  # [C, C], of `classes`
    classes: tuple[str, ...] = ()
    why_not: str = "no error rates on held-out real images are known"  # where there is no confusion


_Found = dict[str, tuple[float | None, Interval | None]]


def attribute(labels: Labels, codes: NDArray[np.int64] | None, *, seed: int) -> AttributeAudit:
    """Shares and figures. `codes` [N] make the intervals those of a quota sampler.

    Raises DdmError where no image belongs to a group.
    """
    said = labels.labels != ""
    if not said.any():
        raise DdmError(f"{labels.name}: no image has a label; shares are undefined")
    table = fairness.count_table(labels.labels[said], labels.groups, None if codes is None else codes[said])  # [S, K]
    counts = table.sum(axis=0)
    n, inside = int(said.sum()), int(counts.sum())
    p, u = fairness.shares(counts, labels.groups), np.array(labels.target)
    draws = bootstrap_shares(table, seed=seed)
    sizes = table.sum(axis=1)
    intervals = [stratified(column, sizes) for column in table.T]
    # Bounds that hold for all groups at once (Bonferroni); two shares add up to 1, so that one interval says all.
    together = 1 - (1 - CONFIDENCE) / len(p) if len(p) > 2 else CONFIDENCE
    raw = _figures(p, [stratified(column, sizes, together) for column in table.T], draws, u)
    why, fixed, corrected = _corrected(labels, p, draws, u, together, seed + 1)
    floor = noise_floor(inside, u, seed=seed)
    shares = [
        Share(
            group=group,
            count=int(counts[k]),
            share=float(p[k]),
            interval=intervals[k],
            target=float(u[k]),
            floor=floor.share_p95[k],
            corrected=None if fixed is None else float(fixed[0][k]),
            corrected_interval=None if fixed is None else fixed[1][k],
        )
        for k, group in enumerate(labels.groups)
    ]
    return AttributeAudit(
        name=labels.name,
        of=labels.of,
        n=n,
        inside=inside,
        neither=Proportion(count=n - inside, share=(n - inside) / n, interval=wilson(n - inside, n)),
        unlabelled=int((~said).sum()),
        strata="none" if codes is None else "code",
        shares=tuple(shares),
        figures=_as_figures(raw, corrected),
        floor_fd_l2=(floor.fd_l2_mean, floor.fd_l2_p95),
        errors_known=labels.confusion is not None,
        not_corrected=why,
    )


def _corrected(
    labels: Labels, p: fairness.Shares, draws: NDArray[np.float64], u: fairness.Shares, together: float, seed: int
) -> tuple[str | None, tuple[fairness.Shares, list[Interval]] | None, _Found]:
    """Why there is no correction, or shares with intervals, and figures."""
    if labels.confusion is None:
        return labels.why_not, None, {}
    try:
        within = fairness.group_confusion(labels.confusion, labels.classes, labels.groups)
        fairness.correct(p, fairness.conditional(within))  # raises where two groups are told apart worse than by chance
    except DdmError as error:
        return str(error), None, {}
    others = labels.confusion[[labels.classes.index(group) for group in labels.groups]].sum(axis=1) - within.sum(axis=1)
    # Images of a group may be judged as a class that is no group, where the judge has such classes.
    counts = within if len(labels.classes) == len(labels.groups) else np.column_stack([within, others])
    found = _undone(p, fairness.conditional(counts))
    errors = fairness.confusion_draws(counts, draws=len(draws), seed=seed)
    redrawn = np.stack([_undone(draw, error) for draw, error in zip(draws, errors, strict=True)])
    # As in `fairness.explained`: a judge without an error on held-out images has its draws on one side.
    intervals, bounds = (
        [
            (float(min(low, x)), float(max(high, x)))
            for (low, high), x in zip(percentile(redrawn, c), found, strict=True)
        ]
        for c in (CONFIDENCE, together)
    )
    return None, (found, intervals), _figures(found, bounds, redrawn, u)


def _undone(p: fairness.Shares, rates: fairness.Shares) -> fairness.Shares:
    """True shares [K] that explain judged shares p [K], given P(judged | truth) [K,K], or [K,K+1] with "in no group".

    p is of images that were judged as some group. Of group i that is the part c_i, so p tells shares t_i·c_i.
    """
    within = rates[:, : len(p)]
    kept = within.sum(axis=1)
    found = fairness.invert(p, within / kept[:, None]) / kept
    return np.asarray(found / found.sum(), dtype=np.float64)


def _figures(p: fairness.Shares, bounds: Sequence[Interval], draws: NDArray[np.float64], u: fairness.Shares) -> _Found:
    """All figures of shares p [K], by `bounds` that hold for all of them at once and draws [R,K]."""
    fd = fd_interval(p, draws, u)
    found: _Found = {}
    if len(p) == 2 and np.allclose(u, 0.5):
        found[FD_DDM] = float(abs(p[0] - 0.5)), (fd[0] / 2**0.5, fd[1] / 2**0.5)
    found[FD_L2] = fairness.fd_l2(p, u), fd
    # As FD's interval: the range of p moves by no more than the range of what p moves by.
    spread = float(np.ptp(p))
    radius = float(np.quantile(np.ptp(draws - p, axis=1), CONFIDENCE))
    found[DIFFERENCE] = spread, (max(0.0, spread - radius), min(1.0, spread + radius))
    found[RATIO] = float(p.min() / p.max()), _ratio_of_shares(p, bounds)
    found[SMALLEST] = float(p.min()), (min(low for low, _ in bounds), min(1 / len(p), *(high for _, high in bounds)))
    return found | _of_aif360(found)


def _ratio_of_shares(p: fairness.Shares, bounds: Sequence[Interval]) -> Interval:
    """Of min p / max p. Of more than two groups, bounds are put together, which errs on the wide side."""
    if len(p) > 2:
        return _ratio(bounds)
    odds = [bound / max(1 - bound, 1e-300) for bound in bounds[0]]  # of the first group
    folded = [min(value, 1 / value) if value else 0.0 for value in odds]
    return min(folded), 1.0 if odds[0] <= 1 <= odds[1] else max(folded)


def _ratio(bounds: Sequence[Interval]) -> Interval:
    """Of min r / max r, where every r lies within its bounds."""
    lows, highs = zip(*bounds, strict=True)
    return min(lows) / max(highs) if max(highs) else 0.0, min(1.0, min(highs) / max(lows)) if max(lows) else 1.0


def _of_aif360(found: _Found) -> _Found:
    """aif360's two, of fairlearn's: the value with the lowest rate is unprivileged, with the highest privileged."""
    difference, interval = found[DIFFERENCE]
    mirrored = None if interval is None else (-interval[1] + 0.0, -interval[0] + 0.0)  # no -0
    return {SPD: (None if difference is None else -difference + 0.0, mirrored), IMPACT: found[RATIO]}


def _as_figures(raw: _Found, corrected: _Found, reason: str | None = None) -> tuple[Figure, ...]:
    fixed = {name: corrected.get(name, (None, None)) for name in raw}
    return tuple(
        Figure(
            name=name,
            library=LIBRARIES[name],
            value=value,
            interval=_around(value, interval),
            corrected=fixed[name][0],
            corrected_interval=_around(*fixed[name]),
            reason=reason if value is None else None,
        )
        for name, (value, interval) in raw.items()
    )


def _around(value: float | None, interval: Interval | None) -> Interval | None:
    """The interval, which holds its estimate in spite of rounding."""
    return None if value is None or interval is None else (min(interval[0], value), max(interval[1], value))


def crossed(parts: Sequence[Labels], target: Sequence[float] | None = None) -> Labels:
    """Several attributes taken together: a group is a cell, "female&asian". By default the attributes' targets are
    multiplied.
    """
    groups = parts[0].groups
    labels = parts[0].labels
    inside = np.isin(labels, groups)
    said = labels != ""
    for part in parts[1:]:
        groups = tuple(f"{a}&{b}" for a in groups for b in part.groups)
        inside &= np.isin(part.labels, part.groups)
        said &= part.labels != ""
        labels = np.char.add(np.char.add(labels, "&"), part.labels)
    # An image that some attribute has in none of its groups is in no cell: a line break is in no name.
    labels = np.where(said, np.where(inside, labels, "\n"), "")
    name = "&".join(part.name for part in parts)
    if target is None:
        target = [math.prod(shares) for shares in product(*(part.target for part in parts))]
    why = "cells of several judges are not corrected"
    return Labels(name, tuple(part.name for part in parts), groups, tuple(target), labels, why_not=why)


def parity(labels: Labels, group: str, by: str, values: NDArray[np.str_]) -> ParityAudit | None:
    """How often images with each of `values` [N] ("" is left out) were judged as `group`; None for fewer than two.

    Intervals of rates are Wilson's. Those of difference and ratio hold for all values at once (Bonferroni).
    """
    known = (labels.labels != "") & (values != "")
    chosen, feature = labels.labels[known] == group, values[known]
    names = [str(name) for name in dict.fromkeys(feature.tolist())]
    if len(names) < 2:
        return None
    rates = []
    for name in names:
        own = chosen[feature == name]
        count, size = int(own.sum()), len(own)
        interval = wilson(count, size)
        rates.append(Rate(value=name, n=size, selected=count, rate=count / size, interval=interval))
    difference, bounds = fairness.spd(chosen, feature, names)
    low, high = sorted(map(abs, bounds))
    if len(names) == 2 and bounds[0] <= 0 <= bounds[1]:
        low = 0.0
    found: _Found = {DIFFERENCE: (abs(difference), (low, high)), RATIO: (None, None)}
    most = max(each.rate for each in rates)
    if most:
        confidence = 1 - (1 - CONFIDENCE) / len(rates)
        ratio = min(each.rate for each in rates) / most
        found[RATIO] = ratio, _ratio([wilson(each.selected, each.n, confidence) for each in rates])
    return ParityAudit(
        name=f"{labels.name}={group}|{by}",
        attribute=labels.name,
        group=group,
        by=by,
        n=len(feature),
        rates=tuple(rates),
        figures=_as_figures(found | _of_aif360(found), {}, "no image shows the outcome: 0 of 0"),
    )
