"""Whether a calibration of A's holds for B, whose images have the codes that it drew."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen
from ddm_rt.evaluate.comparison.paired import CONFIDENCE
from ddm_rt.evaluate.comparison.sides import Images
from ddm_rt.evaluate.intervals import Interval, stratified
from ddm_rt.sample.calibration.calibration import load_all
from ddm_rt.sample.calibration.groups import parse_target

Verdict = Literal["holds", "does not hold", "undecided"]


class Reached(Frozen):
    """A group's share of the images that are of one of the groups."""

    group: str
    wanted: float
    a: float
    b: float
    interval: Interval  # of b, 90 %; images are drawn by code


class Calibrated(Frozen):
    """What a target gives on either side."""

    calibration_id: str
    target: str
    margin: float
    groups: tuple[Reached, ...]
    # Of B: every interval within the margin of what is wanted, one of them wholly outside, or neither.
    verdict: Verdict


def calibrated(
    bundle: Bundle,
    a: Images,
    labels: tuple[NDArray[np.str_], NDArray[np.str_]],
    groups: Sequence[str],
    margin: float,
) -> Calibrated | None:
    """The shares of `groups` by the labels [N] of A and B, beside those that A's target asks for.

    None where no calibration of `bundle`, A's, drew the codes, or where its target is not about just these groups.
    """
    facts = a.facts
    if facts.calibration_id is None or facts.target is None:
        return None
    found = [record for record, identity in load_all(bundle).values() if identity == facts.calibration_id]
    if not found:
        return None
    every = found[0].attributes
    parts = [part for part in parse_target(facts.target, every) if len(part.attributes) == 1]
    about = [part for part in parts if set(part.attributes[0].groups) == set(groups)]
    codes = np.array(a.codes)
    known = [np.isin(side, list(groups)) for side in labels]
    if not about or not all(mask.any() for mask in known):
        return None
    strata = np.unique(codes)
    sizes = np.array([(known[1] & (codes == code)).sum() for code in strata])
    reached = []
    for group, wanted in zip(about[0].attributes[0].groups, about[0].shares, strict=True):
        shares = [float((side[mask] == group).mean()) for side, mask in zip(labels, known, strict=True)]
        counts = np.array([((labels[1] == group) & (codes == code)).sum() for code in strata])
        interval = stratified(counts, sizes, CONFIDENCE)
        reached.append(Reached(group=group, wanted=wanted, a=shares[0], b=shares[1], interval=interval))
    return Calibrated(
        calibration_id=facts.calibration_id,
        target=facts.target,
        margin=margin,
        groups=tuple(reached),
        verdict=_verdict(reached, margin),
    )


def _verdict(groups: Sequence[Reached], margin: float) -> Verdict:
    ends = [(each.interval[0] - each.wanted, each.interval[1] - each.wanted) for each in groups]
    if all(-margin <= low and high <= margin for low, high in ends):
        return "holds"
    return "does not hold" if any(low > margin or high < -margin for low, high in ends) else "undecided"
