"""Calibration: audited images say which groups the codes give; a target over groups becomes weights of codes.

p(group | code) has a Dirichlet posterior from the audited counts; the weights are those that give the target by the
posterior means and stay closest to the tree's own (`maxent`). A target is refused where no mixture of codes surely gets
there (`posterior.extremes`), and for settings other than those that were audited.

A calibration lies in the bundle as calibrations/NAME/calibration.json; its id is the sha256 of that file.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ddm_rt.bundle import Bundle, add_directory, check_name
from ddm_rt.config import Frozen, Positive, SamplerName, Sha256, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.files import write_atomic
from ddm_rt.runtime import CodeTable
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.calibration import posterior
from ddm_rt.sample.calibration.groups import Attribute, Part, cells, check, parse_target, uniform
from ddm_rt.sample.calibration.tilt import effective_number, tilt
from ddm_rt.sample.request import ResolvedRequest

FOLDER, FILE = "calibrations", "calibration.json"
MIN_AUDITS = 8  # images with a group in every attribute; fewer say nothing of any code
_EDGE_TOLERANCE = 1e-3  # of a share: what the eye can't tell apart isn't refused
_DECIMALS = 9  # of stored and resolved weights, so that machines agree on them
_log = logging.getLogger(__name__)

Count = Annotated[int, Field(ge=0)]
Floats = NDArray[np.float64]


class Settings(Frozen):
    """What decides the images beside code and seed: a calibration holds for these alone."""

    prompt: str | tuple[str, ...] | None = None
    negative_prompt: str | None = None
    scope: str | None = None
    sampler: SamplerName
    num_steps: Positive
    guidance_scale: float | None = None
    indicator_guidance_scale: float
    indicator_scale: float
    eta: float
    clip: tuple[float, float] | None
    height: Positive
    width: Positive
    precision: str
    # Not in the file where there is none, so that older versions read it.
    guidance_interval: tuple[float, float] | None = Field(default=None, exclude_if=lambda value: value is None)
    apg: tuple[float, float] | None = Field(default=None, exclude_if=lambda value: value is None)
    cads: tuple[float, float, float] | None = Field(default=None, exclude_if=lambda value: value is None)
    cache: Reuse | None = Field(default=None, exclude_if=lambda value: value is None)

    @classmethod
    def of(
        cls, request: ResolvedRequest, sampler: SamplerName, num_steps: int, precision: str, scope: str | None = None
    ) -> "Settings":
        """Those of a request. `scope` is the calibration's own; a request that is sampled brings its scope itself."""
        shared = {name: getattr(request, name) for name in cls.model_fields if name in ResolvedRequest.model_fields}
        named = {"sampler": sampler, "num_steps": num_steps, "precision": precision}
        return cls(**(shared | named | {"scope": request.scope if scope is None else scope}))

    def differences(self, asked: "Settings") -> list[str]:
        """What a request asks for that isn't as calibrated: "num_steps is 8 (calibrated at 25)".

        A calibration with a scope holds for that scope, whatever the prompts; one without, for its prompt in any scope.
        """
        ignored = {"scope"} if self.scope is None else {"prompt", "negative_prompt"}
        found = []
        for name in type(self).model_fields:
            was, now = getattr(self, name), getattr(asked, name)
            if name not in ignored and was != now:
                found.append(f"{name} is {_plain(now)} (calibrated at {_plain(was)})")
        return found


class Stored(Frozen):
    """A target and the weights that were found for it."""

    target: str
    code_weights: tuple[float, ...]


class Calibration(Frozen):
    """calibration.json. `counts` hold for each code how many audited images were of each combination of groups, the
    last attribute's groups changing fastest; `unsure` how many couldn't be told, which count nowhere else.
    """

    schema_version: Literal[1] = 1
    bundle_id: Sha256
    attributes: tuple[Attribute, ...]
    counts: tuple[tuple[Count, ...], ...]
    unsure: tuple[Count, ...]
    settings: Settings
    targets: tuple[Stored, ...] = ()
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def audited(self) -> int:
        """Images whose groups are known."""
        return sum(map(sum, self.counts))

    def table(self, attributes: Sequence[Attribute]) -> NDArray[np.int64]:
        """Counts [K, G] over the combinations of these of its attributes, summed over the others."""
        sizes = [len(attribute.groups) for attribute in self.attributes]
        array = np.array(self.counts, np.int64).reshape(len(self.counts), *sizes)
        kept = [attribute.name for attribute in attributes]
        others = tuple(i for i, attribute in enumerate(self.attributes, start=1) if attribute.name not in kept)
        return np.asarray(array.sum(axis=others).reshape(len(array), -1), np.int64)

    def reachable(self, attributes: Sequence[Attribute], base: Floats) -> dict[str, tuple[float, float]]:
        """For each combination of groups the lowest and highest share that weights surely give: 90 % bounds."""
        counts = self.table(attributes)
        p, spread = posterior.mean(counts), posterior.variance(counts)
        return {cell: posterior.extremes(p[:, i], spread[:, i], base) for i, cell in enumerate(cells(attributes))}


@dataclass(frozen=True)
class Weighted:
    """A weight for each code, and what is to be expected of them; see `assignment.by_codes`."""

    code_weights: tuple[float, ...]  # [K], sum to 1
    target: str  # in one spelling: attributes and groups in the calibration's order
    calibration_id: str | None  # None before it is stored
    name: str | None
    shares: Mapping[str, Mapping[str, tuple[float, float]]]  # per attribute and group: share, 90 % half-width
    effective_codes: float
    effective_images: float  # training images that share the weight


def base_weights(codes: CodeTable) -> Floats:
    """Weights [K] of the codes under the uniform target. Raises DdmError for a bundle without codes."""
    if not codes.leaves:
        raise DdmError("the bundle has no codes; a calibration weights codes (`ddm-rt train --indicator codes`)")
    return np.array([leaf.share_in_top / codes.num_top_codes for leaf in codes.leaves])


def calibration(
    bundle: Bundle,
    attributes: Sequence[Attribute],
    audited: Iterable[tuple[int, tuple[str, ...] | None]],
    settings: Settings,
    provenance: Mapping[str, Any],
) -> Calibration:
    """From images as (code, their group in each attribute, or None where it couldn't be told).

    Raises DdmError for a code or group that isn't known, and for fewer than MIN_AUDITS images with groups.
    """
    attributes = check(attributes, "calibration")
    places = {tuple(cell.split("&")): i for i, cell in enumerate(cells(attributes))}
    num_codes = len(base_weights(bundle.codes))
    counts, unsure = np.zeros((num_codes, len(places)), np.int64), np.zeros(num_codes, np.int64)
    for code, groups in audited:
        if not 0 <= code < num_codes:
            raise DdmError(
                f"audited image has code {code}; expected 0 to {num_codes - 1} (the null code can't be used)"
            )
        if groups is None:
            unsure[code] += 1
        elif groups in places:
            counts[code, places[groups]] += 1
        else:
            raise DdmError(f"audited image is {'&'.join(groups)}; known: {', '.join(cells(attributes))}")
    if counts.sum() < MIN_AUDITS:
        raise DdmError(f"{counts.sum()} audited images have their groups; expected at least {MIN_AUDITS}, better 64")
    return Calibration(
        bundle_id=bundle.bundle_id,
        attributes=attributes,
        counts=tuple(tuple(map(int, row)) for row in counts),
        unsure=tuple(map(int, unsure)),
        settings=settings,
        provenance=dict(provenance),
    )


def solve(
    found: Calibration, parts: Sequence[Part], base: Floats, *, nearest: bool = False, prior: float | None = None
) -> Floats:
    """The weights [K] for a target. With `nearest` any target gets some, the nearest that there are.

    `prior` on each group is fitted where it is None.

    Raises DdmError for one that is out of reach by the 90 % bounds, saying how far the codes go.
    """
    columns = np.hstack([means(found.table(part.attributes), prior) for part in parts])
    wanted = np.concatenate([part.shares for part in parts])
    reachable = [] if nearest else [(part, found.reachable(part.attributes, base)) for part in parts]
    for part, reach in reachable:
        for (cell, (low, high)), share in zip(reach.items(), part.shares, strict=True):
            if not low - _EDGE_TOLERANCE <= share <= high + _EDGE_TOLERANCE:
                raise DdmError(
                    f"target {cell}={share:g} is out of reach: with {found.audited} audited images the codes surely "
                    f"give {low:.3f} to {high:.3f} (90 % bounds). {_HELP}"
                )
    result = tilt(columns, wanted, base, slack=1e-3 if nearest else 0.0)
    if not (result.reached or nearest):
        at = dict(zip((cell for part in parts for cell in cells(part.attributes)), result.shares, strict=True))
        raise DdmError(
            f"target {';'.join(map(str, parts))}: each share is in reach, but not all at once; the nearest is "
            f"{', '.join(f'{cell}={share:.3f}' for cell, share in at.items())}. {_HELP}"
        )
    return rounded(result.weights)


def rounded(weights: Floats) -> Floats:
    """Weights [K] of sum 1 with so few decimals that machines agree on them."""
    kept = np.round(weights, _DECIMALS)
    return np.asarray(kept / kept.sum(), np.float64)


def means(counts: NDArray[np.int64], prior: float | None = None) -> Floats:
    """Posterior means [K, G] of counts [K, G] that weights are made with; `prior` is fitted where it is None."""
    return posterior.mean(counts, posterior.fitted_prior(counts) if prior is None else prior)


_HELP = "More codes (train --micro-codes), more audits (calibrate --n) or retraining with more such images is needed"


def with_target(found: Calibration, target: str | None, codes: CodeTable) -> tuple[Calibration, Weighted]:
    """The calibration with the weights for `target` in it (None: even shares of each attribute's groups)."""
    parts = uniform(found.attributes) if target is None else parse_target(target, found.attributes)
    return with_weights(found, ";".join(map(str, parts)), solve(found, parts, base_weights(codes)), codes)


def with_weights(found: Calibration, text: str, weights: Floats, codes: CodeTable) -> tuple[Calibration, Weighted]:
    """The calibration with `weights` [K] in it, for the target `text` in one spelling."""
    stored = Stored(target=text, code_weights=tuple(map(float, weights)))
    others = tuple(other for other in found.targets if other.target != text)
    return found.model_copy(update={"targets": (*others, stored)}), weighted(found, text, weights, codes)


def weighted(
    found: Calibration,
    target: str,
    weights: Floats,
    codes: CodeTable,
    calibration_id: str | None = None,
    name: str | None = None,
) -> Weighted:
    """`weights` [K] with what they are expected to give in every audited attribute."""
    shares = {}
    for attribute in found.attributes:
        counts = found.table([attribute])
        expected = weights @ means(counts)
        half = posterior.Z90 * np.sqrt(weights**2 @ posterior.variance(counts))
        each = zip(attribute.groups, expected.tolist(), half.tolist(), strict=True)
        shares[attribute.name] = {group: (share, width) for group, share, width in each}
    return Weighted(
        code_weights=tuple(map(float, weights)),
        target=target,
        calibration_id=calibration_id,
        name=name,
        shares=shares,
        effective_codes=effective_number(weights),
        effective_images=effective_number(weights, np.array([leaf.size for leaf in codes.leaves], np.float64)),
    )


def store(bundle: Bundle, found: Calibration, name: str) -> tuple[Bundle, str]:
    """The bundle with the calibration added as `name` (one of that name is replaced), and the calibration's id."""
    check_name("calibration", name)
    content = found.model_dump_json(indent=1) + "\n"
    added = add_directory(bundle, f"{FOLDER}/{name}", lambda folder: write_atomic(folder / FILE, content))
    return added, hashlib.sha256(content.encode()).hexdigest()


def load_all(bundle: Bundle) -> dict[str, tuple[Calibration, str]]:
    """Calibrations by name, with their ids. Raises BundleError for one that is damaged or doesn't fit the codes."""
    found = {}
    for name, where in bundle.records(FOLDER, FILE).items():
        bundle.check_directory(f"{FOLDER}/{name}")
        record = parse_json(Calibration, where.read_bytes(), where)
        _check(record, bundle.codes.num_codes, where)
        found[name] = (record, bundle.index.files[f"{FOLDER}/{name}/{FILE}"].sha256)
    return found


def _check(record: Calibration, num_codes: int, where: Path) -> None:
    check(record.attributes, str(where))
    width = len(cells(record.attributes))
    if len(record.counts) != num_codes or any(len(row) != width for row in record.counts):
        raise BundleError(f"{where}: field counts: expected {num_codes} codes with {width} counts each")
    for stored in record.targets:
        weights = np.array(stored.code_weights)
        if weights.shape != (num_codes,) or (weights < 0).any() or abs(weights.sum() - 1) > 1e-6:
            raise BundleError(f"{where}: field targets: weights of {stored.target}: expected {num_codes}, of sum 1")


def resolve(bundle: Bundle, target: str, settings: Settings, *, allow_stale: bool = False) -> Weighted:
    """Weights of the codes for a target over groups, from the bundle's calibrations.

    Of several that know the target's groups and hold for `settings`, the one with the most audited images is taken.
    Raises DdmError where there is none, where the target is malformed or out of reach, and where every one is for other
    settings or another bundle, unless `allow_stale`: then a warning says what differs.
    """
    every = load_all(bundle)
    if not every:
        raise DdmError(
            f"target {target!r}: this bundle has no calibration that knows groups; `ddm-rt calibrate` adds one"
        )
    knowing: dict[str, tuple[Part, ...]] = {}
    reasons = {}
    for key, (record, _) in every.items():
        try:
            knowing[key] = parse_target(target, record.attributes)
        except DdmError as error:
            reasons[key] = str(error)
    if not knowing:
        raise DdmError("; ".join(dict.fromkeys(reasons.values())))
    stale = {}
    for key in knowing:
        record, _ = every[key]
        foreign = [] if bundle.is_of(record.bundle_id) else [f"it is of another bundle, {record.bundle_id[:12]}"]
        stale[key] = foreign + record.settings.differences(settings)
    fitting = [key for key in knowing if not stale[key]]
    if not fitting and not allow_stale:
        told = "; ".join(f"{key}: {', '.join(stale[key])}" for key in stale)
        raise DdmError(
            f"target {target!r}: no calibration holds for these settings: {told}; calibrate for them, or --allow-stale"
        )
    chosen = max(fitting or knowing, key=lambda key: (every[key][0].audited, key))
    if stale[chosen]:
        _log.warning("calibration %s is used for what it wasn't made for: %s", chosen, ", ".join(stale[chosen]))
    record, calibration_id = every[chosen]
    text = ";".join(map(str, knowing[chosen]))
    known = {stored.target: stored.code_weights for stored in record.targets}
    base = base_weights(bundle.codes)
    weights = np.array(known[text]) if text in known else solve(record, knowing[chosen], base)
    return weighted(record, text, weights, bundle.codes, calibration_id, chosen)


def _plain(value: object) -> str:
    return "not set" if value is None else str(value) or "empty"
