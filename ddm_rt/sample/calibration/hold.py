"""Reaching a target over one attribute while another stays where it is, within a bound.

With p_k and q_k the shares of groups that code k gives in the target's attribute and in the held one, the weights π are
those closest to the codes' own weights b in relative entropy with

    Σ_k π_k p_k = target    and    ‖Σ_k π_k q_k - reference‖₂ ≤ bound.

The problem is convex. Where the bound binds, its optimum is that of a penalty ‖Σ_k π_k q_k - reference‖² / (2·slack) in
the bound's place, for the one slack at which the distance is the bound; the distance grows with the slack. So `tilt`
does it, with a search for the slack.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from scipy.optimize import brentq

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.runtime import CodeTable
from ddm_rt.sample.calibration.calibration import Calibration, Weighted, base_weights, means, rounded, solve
from ddm_rt.sample.calibration.groups import Attribute, Part, cells, parse_target, uniform
from ddm_rt.sample.calibration.tilt import effective_number, tilt

Floats = NDArray[np.float64]

BOUND = 0.05
_FARTHEST = math.sqrt(2)  # between any two sets of shares
_SLACKS = (1e-7, 1e3)  # of the held shares: as near as they get; free
_SHORT = 1e-4  # slack of the target where it can't be met: misses of a thousandth
_POINTS = 7  # of a curve
_CLOSE, _EDGE = 1e-6, 1e-4  # of a distance: nothing; what is refused


@dataclass(frozen=True)
class Hold:
    """`attribute` may move by `bound` (distance of its shares, root of the sum of squares) from `wanted`.

    `wanted` None: from where it stands under the uniform target.
    """

    attribute: Attribute
    wanted: tuple[float, ...] | None = None
    bound: float = BOUND


class Point(Frozen):
    """One compromise: what the held attribute moves by, what the target misses by, and what is behind the samples."""

    held: Annotated[float, Field(ge=0)]  # distance of the held attribute's shares from where they should stay
    missed: Annotated[float, Field(ge=0)]  # distance of the target's shares from the target
    shares: dict[str, float]  # of the target's groups
    effective_codes: float
    effective_images: float


class Held(Frozen):
    """How a hold came out; what the calibration file keeps of it, under provenance, and nothing reads to sample."""

    target: str
    attribute: str
    bound: float
    reference: dict[str, float]  # shares of its groups that it should keep
    distance: float  # how far off they are expected to be
    curve: tuple[Point, ...]  # from the strictest hold to none


class NotBoth(DdmError):
    """The target can't be met within the bound. `held` has the curve of what can be."""

    def __init__(self, message: str, held: Held) -> None:
        super().__init__(message)
        self.held = held


def parse_hold(text: str, attributes: Sequence[Attribute]) -> Hold:
    """From "race", "race<=.05" or, to hold it at other shares than its present ones, "race:uniform<=.05".

    Raises DdmError quoting the text for an unknown attribute, malformed shares, or a bound that isn't above 0.
    """
    where = f"--hold {text!r}"
    head, sign, number = text.rpartition("<=")
    head = (head if sign else text).strip()
    try:
        bound = float(number) if sign else BOUND
    except ValueError:
        bound = math.nan
    if not 0 < bound <= _FARTHEST:
        raise DdmError(f"{where}: the bound is {number.strip()!r}; expected a number above 0, at most 1.41: race<=.05")
    known = {attribute.name: attribute for attribute in attributes}
    name = head.partition(":")[0].strip()
    if name not in known and {*name} & {*"<>="}:
        raise DdmError(f"{where}: expected an attribute with a bound in quotes, for example 'race<=.05'")
    if name not in known:
        raise DdmError(f"{where}: attribute {name!r} is unknown; known: {', '.join(known)}")
    if ":" not in head:
        return Hold(known[name], None, bound)
    parts = parse_target(head, attributes)
    if len(parts) != 1:
        raise DdmError(f"{where}: {len(parts)} attributes; expected one, the others belong into --target")
    return Hold(known[name], parts[0].shares, bound)


def parts_beside(hold: Hold, target: str | None, attributes: Sequence[Attribute]) -> tuple[Part, ...]:
    """The target's parts; without one, even shares of every attribute that isn't held.

    Raises DdmError where the target names the held attribute, or nothing is left to aim at.
    """
    name = hold.attribute.name
    if target is None:
        parts = uniform([attribute for attribute in attributes if attribute.name != name])
        if not parts:
            raise DdmError(
                f"--hold: {name} is the only attribute; expected another to aim at (--groups 'gender:...;race:...')"
            )
        return parts
    parts = parse_target(target, attributes)
    if any(name == attribute.name for part in parts for attribute in part.attributes):
        raise DdmError(f"--hold: {name} stands in the target {target!r} too; expected it in one of them")
    return parts


def nearest(
    p: Floats, target: Floats, q: Floats, reference: Floats, bound: float, base: Floats, short: float
) -> Floats:
    """The weights [K] above for p [K,F], target [F], q [K,G], reference [G] and base [K].

    With `short` > 0 the target is missed by short·λ (see `tilt`): then there are weights for any target. Where even so
    the bound can't be kept, they are those with the least distance.
    """
    free = tilt(p, target, base, short).weights
    if distance(free, q, reference) <= bound + _CLOSE:
        return free
    both, wanted = np.hstack([p, q]), np.concatenate([target, reference])

    def at(log_slack: float) -> Floats:
        slack = np.concatenate([np.full(len(target), short), np.full(len(reference), 10**log_slack)])
        return tilt(both, wanted, base, slack).weights

    low, high = map(math.log10, _SLACKS)
    if distance(at(low), q, reference) >= bound or distance(at(high), q, reference) <= bound:
        return at(low)
    return at(float(brentq(lambda x: distance(at(x), q, reference) - bound, low, high, xtol=1e-9)))


def distance(weights: Floats, p: Floats, wanted: Floats) -> float:
    """Between the shares that the weights [K] give and the wanted ones: the root of the sum of squares, as FD_L2."""
    return float(np.linalg.norm(weights @ p - wanted))


def solve_held(
    found: Calibration, parts: Sequence[Part], hold: Hold, codes: CodeTable, *, approximate: bool = False
) -> tuple[Floats, Held]:
    """The weights [K] for a target beside a hold, and how the hold came out.

    Raises DdmError as `solve` does, and NotBoth where the target can't be met within the bound. With `approximate` any
    target and bound get some.
    """
    base, sizes = base_weights(codes), np.array([leaf.size for leaf in codes.leaves], np.float64)
    solve(found, parts, base, nearest=approximate)
    p = np.hstack([means(found.table(part.attributes)) for part in parts])
    target = np.concatenate([part.shares for part in parts])
    q = means(found.table([hold.attribute]))
    reference = base @ q if hold.wanted is None else np.array(hold.wanted)
    names = [cell for part in parts for cell in cells(part.attributes)]

    def within(bound: float, short: float) -> Floats:
        return rounded(nearest(p, target, q, reference, bound, base, short))

    def point(weights: Floats) -> Point:
        return Point(
            held=distance(weights, q, reference),
            missed=distance(weights, p, target),
            shares=dict(zip(names, (weights @ p).tolist(), strict=True)),
            effective_codes=effective_number(weights),
            effective_images=effective_number(weights, sizes),
        )

    strictest, free = point(within(_CLOSE, _SHORT)), point(within(_FARTHEST, _SHORT if approximate else 0.0))
    even = np.linspace(strictest.held, free.held, _POINTS)
    apart = (free.held - strictest.held) / _POINTS / 2  # of the bound's own point from the others
    between = [float(bound) for bound in even[1:-1] if abs(bound - hold.bound) > apart]
    if strictest.held + _CLOSE < hold.bound < free.held - _CLOSE:
        between = sorted([*between, hold.bound])
    weights = within(hold.bound, _SHORT if approximate else 0.0)
    chosen = point(weights)
    held = Held(
        target=";".join(map(str, parts)),
        attribute=hold.attribute.name,
        bound=hold.bound,
        reference=dict(zip(hold.attribute.groups, reference.tolist(), strict=True)),
        distance=chosen.held,
        curve=(strictest, *(point(within(bound, _SHORT)) for bound in between), free),
    )
    if not approximate and (chosen.held > hold.bound + _EDGE or chosen.missed > _EDGE):
        raise NotBoth(_not_both(held, chosen.held), held)
    return weights, held


def _not_both(held: Held, least: float) -> str:
    """How far each can be had without the other."""
    inside = [point for point in held.curve if point.held <= held.bound + _EDGE]
    best = inside[-1] if inside else held.curve[0]
    at = ", ".join(f"{name}={share:.3f}" for name, share in best.shares.items())
    return (
        f"--hold {held.attribute}<={held.bound:g} and target {held.target} can't both be had: with this target "
        f"{held.attribute} is at least {least:.3f} off; {'within the bound' if inside else f'at {best.held:.3f}'} the "
        f"nearest to the target is {at}. Raise the bound, or aim at shares of the curve"
    )


def moved(before: Weighted, after: Weighted, attribute: str) -> float:
    """The distance between an attribute's shares in two mixtures of codes."""
    pairs = zip(before.shares[attribute].values(), after.shares[attribute].values(), strict=True)
    return math.sqrt(sum((a - b) ** 2 for (a, _), (b, _) in pairs))
