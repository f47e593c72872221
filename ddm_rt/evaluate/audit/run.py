"""From images and judges to the record of an audit. Rules and options are checked before any image is read."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ddm_rt.engine.contract import usable_cores
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit import images, measures, people, rules
from ddm_rt.evaluate.audit.about import About
from ddm_rt.evaluate.audit.judges import Source, Witness, alone, checked, witnesses
from ddm_rt.evaluate.audit.record import Audit, Fact, ParityAudit, QualityAudit
from ddm_rt.evaluate.audit.risks import risks
from ddm_rt.evaluate.intervals import CONFIDENCE
from ddm_rt.evaluate.quality import MIN_PER_GROUP, per_group, quality
from ddm_rt.progress import OnStep
from ddm_rt.sample.calibration.groups import parse_attributes, parse_target

THUMBNAILS, _SIDE = 48, 96  # of the page: how many, and pixels of an edge
_MOST_VALUES = 100  # of a sensitive feature
_MOST_CELLS = 200  # groups of an attribute, or cells of several
_NONE = "none"  # in the place of attributes to take together


@dataclass(frozen=True)
class Asked:
    """What is asked of an audit, in the words of the command line; `cli/evaluate.py` has what each means."""

    judges: Sequence[Source]
    rules: Sequence[str] = ()
    groups: str | None = None
    target: str | None = None
    classes: str | None = None
    preprocessing: Mapping[str, Path] = field(default_factory=dict)
    by: Sequence[str] = ()
    outcomes: Sequence[str] = ()
    crossings: Sequence[str] | None = None  # None: each two attributes
    reference: Path | None = None
    min_per_group: int = MIN_PER_GROUP
    skip_unreadable: bool = False
    threads: int | None = None  # of classifiers; None: all cores
    seed: int = 0


@dataclass(frozen=True)
class _Plan:
    """What will be measured, checked."""

    witnesses: list[Witness]
    targets: dict[str, tuple[float, ...]]
    crossings: list[tuple[str, ...]]
    outcomes: list[tuple[str, str]]  # attribute and group
    rules: list[rules.Rule]


def audit(
    material: images.Material,
    asked: Asked,
    about: About,
    identity: Sequence[Fact],
    *,
    of_torch: Callable[[Source], Source],
    on_step: OnStep | None = None,
) -> tuple[Audit, NDArray[np.uint8]]:
    """The record, and small pictures of the first images uint8 [M,H,W,3].

    Raises DdmError for what doesn't fit together, before an image is read; naming an image that can't be read, unless
    `asked.skip_unreadable`; and where no image belongs to any group of an attribute.
    """
    plan = _plan(material, asked, of_torch)
    real = None if asked.reference is None else images.find(asked.reference)
    total = len(material.names) + (0 if real is None else len(real.names))
    census = images.Census()
    kept: list[int] = []
    small: list[NDArray[np.uint8]] = []
    for i, picture in _pictures(material, plan.witnesses, asked.skip_unreadable, census, on_step, total, 0):
        kept.append(i)
        if len(small) < THUMBNAILS:
            small.append(np.asarray(ImageOps.pad(picture.image, (_SIDE, _SIDE), Image.Resampling.LANCZOS, "white")))
    if not kept:
        raise DdmError(f"{material.title}: none of {len(material.names)} images could be read")
    codes = None if material.codes is None else material.codes[kept]
    said = {witness.source.attribute: _labels(witness, plan, kept) for witness in plan.witnesses}
    attributes = tuple(measures.attribute(labels, codes, seed=asked.seed) for labels in said.values())
    crossings = []
    for names in plan.crossings:
        cells = measures.crossed([said[name] for name in names], plan.targets.get("&".join(names)))
        if np.isin(cells.labels, cells.groups).any():
            crossings.append(measures.attribute(cells, codes, seed=asked.seed))
    parities = _parities(plan, said, {name: material.columns[name] for name in asked.by}, kept)
    compared, more = (None, ()) if real is None else _quality(plan, real, said, asked, on_step, total)
    found = Audit(
        title=about.model or material.title,
        n=len(kept),
        about=about,
        identity=(*material.identity, *identity, Fact(name="threads", value=str(asked.threads or usable_cores()))),
        data=(*census.facts(material), *more),
        judges=tuple(witness.facts() for witness in plan.witnesses),
        attributes=attributes,
        crossings=tuple(crossings),
        parities=parities,
        agreements=tuple(
            agreement
            for witness in plan.witnesses
            if witness.people is not None
            for agreement in people.agreements(witness.source.attribute, witness.people, kept, seed=asked.seed)
        ),
        rules=rules.judge(plan.rules, (*attributes, *crossings), parities),
        quality=compared,
        confidence=CONFIDENCE,
        seed=asked.seed,
        risks=(),
    )
    return found.model_copy(update={"risks": risks(found, census)}), np.stack(small)


def _plan(material: images.Material, asked: Asked, of_torch: Callable[[Source], Source]) -> _Plan:
    set_before = [rules.parse_rule(text) for text in asked.rules]
    groups, classes = (
        alone(parse_attributes(text, where), asked.judges) if text is not None else ()
        for text, where in ((asked.groups, "--groups"), (asked.classes, "--classes"))
    )
    found = witnesses(
        asked.judges,
        material.names,
        groups=groups,
        classes=classes,
        preprocessing=asked.preprocessing,
        threads=asked.threads or usable_cores(),
        of_torch=of_torch,
    )
    names = [witness.source.attribute for witness in found]
    targets = {}
    if asked.target is not None:
        targets = {part.name: part.shares for part in parse_target(asked.target, checked(found, "--target"))}
    crossings = [_parts(text, names) for text in asked.crossings or () if text != _NONE]
    if asked.crossings is None:
        crossings = list(combinations(names, 2))
    for crossing in crossings:
        if len(crossing) < 2 or len(set(crossing)) != len(crossing) or not set(crossing) <= set(names):
            text = "&".join(crossing)
            raise DdmError(f"--cross {text!r}: expected two or more of {', '.join(names)} with & between them")
    crossings = list(dict.fromkeys(crossings))
    set_before = [replace(rule, what=_ordered(rule.what, names)) for rule in set_before]
    measured = [*names, *map("&".join, crossings)]
    if unknown := [name for name in targets if name not in measured]:
        raise DdmError(
            f"--target: {unknown[0]!r} isn't measured; measured: {', '.join(measured)} (--cross names others)"
        )
    by_name = {witness.source.attribute: witness for witness in found}
    for several in (*((name,) for name in names), *crossings):
        if (cells := math.prod(len(by_name[name].groups) for name in several)) > _MOST_CELLS:
            raise DdmError(
                f"{'&'.join(several)}: {cells} groups are more than {_MOST_CELLS}; name fewer (--groups), or other "
                "attributes to take together (--cross, or --cross none)"
            )
    outcomes = [_outcome(text, by_name) for text in asked.outcomes]
    for column in asked.by:
        if column in names:
            raise DdmError(
                f"--by {column!r}: a judge has this name; name the judge otherwise, as in --judge judged_{column}=FILE"
            )
        _check_column(column, material)
    if asked.by and not outcomes:
        outcomes = [(name, group) for name in names for group in _told_apart(by_name[name].groups)]
    plan = _Plan(found, targets, crossings, outcomes, set_before)
    if asked.reference is not None:
        first = next((witness for witness in found if witness.judge is not None), None)
        if first is None:
            raise DdmError("--reference: quality is measured in the features of a classifier; people have none")
        first.keep_features = True
    rules.check(set_before, _offered(plan, asked.by))
    return plan


def _parts(text: str, names: Sequence[str]) -> tuple[str, ...]:
    """Attributes with & between them, in the order of their judges, as a target has them. Unknown ones come last."""
    parts = [part.strip() for part in text.split("&")]
    return tuple(sorted(parts, key=lambda part: names.index(part) if part in names else len(names)))


def _ordered(what: str | None, names: Sequence[str]) -> str | None:
    return what if what is None or "|" in what else "&".join(_parts(what, names))


def _told_apart(groups: Sequence[str]) -> Sequence[str]:
    """Of two groups the first says all."""
    return groups[:1] if len(groups) == 2 else groups


def _outcome(text: str, known: Mapping[str, Witness]) -> tuple[str, str]:
    attribute, _, group = (part.strip() for part in text.partition("="))
    if attribute not in known or group not in known[attribute].groups:
        told = "; ".join(f"{name}: {', '.join(witness.groups)}" for name, witness in known.items())
        raise DdmError(f"--outcome {text!r}: expected ATTRIBUTE=GROUP of {told}")
    return attribute, group


def _check_column(name: str, material: images.Material) -> None:
    values = set(material.columns.get(name, ())) - {""}
    if name not in material.columns:
        there = ", ".join(material.columns) or "none"
        raise DdmError(f"--by {name!r}: no such column in {images.METADATA} or {images.MANIFEST}; there are: {there}")
    if not 2 <= len(values) <= _MOST_VALUES:
        raise DdmError(f"--by {name!r}: has {len(values)} values; expected 2 to {_MOST_VALUES}, each of many images")


def _offered(plan: _Plan, by: Sequence[str]) -> dict[str, list[str]]:
    """Names of metrics by what they are of."""
    empty = np.array([], dtype=np.str_)
    parts = {}
    for witness in plan.witnesses:
        name, groups = witness.source.attribute, witness.groups
        target = plan.targets.get(name, (1 / len(groups),) * len(groups))
        parts[name] = measures.Labels(name, (name,), groups, target, empty)
    offered = {name: rules.metrics_of(labels) for name, labels in parts.items()}
    for names in plan.crossings:
        cells = measures.crossed([parts[name] for name in names], plan.targets.get("&".join(names)))
        offered[cells.name] = rules.metrics_of(cells)
    for attribute, group in plan.outcomes:
        for feature in [*by, *(name for name in parts if name != attribute)]:
            offered[f"{attribute}={group}|{feature}"] = list(measures.OF_PARITY)
    return offered


def _pictures(
    material: images.Material,
    lookers: Sequence[Witness],
    skip: bool,
    census: images.Census,
    on_step: OnStep | None,
    total: int,
    before: int,
) -> Iterator[tuple[int, images.Picture]]:
    """Images that `lookers` have looked at. One that can't be read or prepared is skipped or raises."""
    for i, name in enumerate(material.names):
        try:
            picture = material.read(i)
            ready = [_prepared(witness, picture.image, name) for witness in lookers]
        except DdmError:
            if not skip:
                raise
            census.unreadable.append(name)
        else:
            census.add(name, picture)
            for witness, x in zip(lookers, ready, strict=True):
                witness.look(x)
            yield i, picture
        if on_step is not None:
            on_step(before + i + 1, total)


def _prepared(witness: Witness, image: Image.Image, name: str) -> NDArray[np.float32] | None:
    try:
        return witness.prepared(image)
    except DdmError as error:
        raise DdmError(f"{name}: the judge of {witness.source.attribute} can't take it: {error}") from error


def _labels(witness: Witness, plan: _Plan, kept: Sequence[int]) -> measures.Labels:
    name, groups, judge = witness.source.attribute, witness.groups, witness.judge
    return measures.Labels(
        name=name,
        of=(name,),
        groups=groups,
        target=plan.targets.get(name, (1 / len(groups),) * len(groups)),
        labels=witness.said(kept),
        confusion=None if judge is None else judge.confusion,
        classes=() if judge is None else judge.classes,
    )


def _parities(
    plan: _Plan,
    said: Mapping[str, measures.Labels],
    columns: Mapping[str, tuple[str, ...]],
    kept: Sequence[int],
) -> tuple[ParityAudit, ...]:
    found = []
    for attribute, group in plan.outcomes:
        features = {name: np.array(column)[list(kept)] for name, column in columns.items()}
        for other, labels in said.items():
            if other != attribute:
                features[other] = np.where(np.isin(labels.labels, labels.groups), labels.labels, "")
        found += [measures.parity(said[attribute], group, by, values) for by, values in features.items()]
    return tuple(parity for parity in found if parity is not None)


def _quality(
    plan: _Plan,
    real: images.Material,
    said: Mapping[str, measures.Labels],
    asked: Asked,
    on_step: OnStep | None,
    total: int,
) -> tuple[QualityAudit, tuple[Fact, ...]]:
    """The quality, and what else is to be told of the reference."""
    made = next(witness for witness in plan.witnesses if witness.keep_features)
    name, again = made.source.attribute, made.fresh()
    before, census = total - len(real.names), images.Census()
    kept = [i for i, _ in _pictures(real, [again], asked.skip_unreadable, census, on_step, total, before)]
    if not kept:
        raise DdmError(f"--reference {real.title}: none of {len(real.names)} images could be read")
    x, y = made.features(), again.features()
    assert made.judge is not None
    column = next((real.columns[head] for head in (name, "label") if head in real.columns), None)
    labels = np.array([column[i] for i in kept] if column is not None else ())
    missing = [group for group in made.groups if group not in set(labels.tolist())]
    groups = () if missing else made.groups
    facts = [Fact(name="unreadable in the reference", value=census.left_out)]
    if missing:
        why = (
            f"no image of the reference has the label {missing[0]!r}"
            if len(labels)
            else (f"the reference's {images.METADATA} has no column {name} or label")
        )
        facts.append(Fact(name="quality per group", value=f"not measured: {why}"))
    audited = QualityAudit(
        reference=real.title,
        judge=name,
        feature_space=made.judge.feature_space,
        found=quality(x, y),
        min_per_group=asked.min_per_group,
        per_group=per_group(x, said[name].labels, y, labels, groups, asked.min_per_group) if groups else (),
    )
    return audited, tuple(facts)
