"""Who says what an image shows: classifiers as ONNX files, and people. Several at once, one for each attribute."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.images import shown
from ddm_rt.evaluate.audit.people import People, read_people
from ddm_rt.evaluate.audit.record import Fact, GroupAccuracy, JudgeFacts
from ddm_rt.evaluate.fairness import check_known
from ddm_rt.evaluate.intervals import wilson
from ddm_rt.evaluate.judge import Judge
from ddm_rt.files import sha256
from ddm_rt.sample.calibration.groups import Attribute, check

BATCH = 16  # images that a classifier sees at once
_NAME = re.compile(r"[^\W\d][\w-]*")
OCCURRING = "groups are the labels that occur"  # a fact of people
_OWN = "ddm_rt's own: resize to {size} (bilinear), values from -1 to 1"

Kind = Literal["file", "clip", "people"]


@dataclass(frozen=True)
class Source:
    """`[ATTRIBUTE=]PATH`, `[ATTRIBUTE=]clip:FOLDER` or `[ATTRIBUTE=]people:FILE`.

    `made_from` says what an ONNX file was exported from, where that was done for this audit.
    """

    attribute: str
    kind: Kind
    path: str
    made_from: str | None = None


def parse_source(text: str) -> Source:
    """Raises DdmError for an attribute that is no name, and where there is no path."""
    attribute, sign, place = text.partition("=")
    if not sign:
        attribute, place = "", text
    head, colon, rest = place.partition(":")
    kind: Kind = head if colon and head in ("clip", "people") else "file"  # type: ignore[assignment]
    path = rest if kind != "file" else place
    if not path.strip():
        raise DdmError(f"--judge {text!r}: expected [ATTRIBUTE=]FILE, [ATTRIBUTE=]clip:FOLDER or people:FILE")
    if not sign:
        attribute = re.sub(r"\W+", "_", Path(path).stem).strip("_")
        attribute = attribute if _NAME.fullmatch(attribute) else "group"
    if not _NAME.fullmatch(attribute):
        raise DdmError(
            f"--judge {text!r}: {attribute!r} is no name of an attribute; expected a word, as in gender=FILE"
        )
    return Source(attribute, kind, path)


@dataclass
class Witness:
    """One judge of an audit: a classifier, or people."""

    source: Source
    groups: tuple[str, ...]
    judge: Judge | None
    people: People | None
    named: bool = True  # by --groups; else the groups are what occurs in a file of people
    keep_features: bool = False
    _waiting: list[NDArray[np.float32]] = field(default_factory=list)
    _labels: list[NDArray[np.str_]] = field(default_factory=list)
    _features: list[NDArray[np.float32]] = field(default_factory=list)

    def prepared(self, image: Image.Image) -> NDArray[np.float32] | None:
        """An image in RGB as the classifier takes it, for `look`. Raises DdmError for one that gets too big."""
        return None if self.judge is None else self.judge.prepared(image)

    def look(self, x: NDArray[np.float32] | None) -> None:
        """The classifier's next image, `prepared`. Images are judged in batches of one shape."""
        if x is None:
            return
        if self._waiting and (len(self._waiting) == BATCH or self._waiting[0].shape != x.shape):
            self._decide()
        self._waiting.append(x)

    def _decide(self) -> None:
        assert self.judge is not None
        found = self.judge.verdicts(np.stack(self._waiting))
        self._labels.append(found.labels)
        if self.keep_features:
            self._features.append(found.features)
        self._waiting.clear()

    def said(self, kept: Sequence[int]) -> NDArray[np.str_]:
        """Labels of the images that were looked at, `kept` being their places in the material."""
        if self.people is not None:
            return self.people.labels[list(kept)]
        if self._waiting:
            self._decide()
        return np.concatenate(self._labels)

    def features(self) -> NDArray[np.float32]:
        if self._waiting:
            self._decide()
        return np.concatenate(self._features)

    def fresh(self) -> "Witness":
        """The same judge, before it saw anything."""
        return Witness(self.source, self.groups, self.judge, self.people, self.named, self.keep_features)

    def facts(self) -> JudgeFacts:
        if self.judge is None:
            assert self.people is not None
            return JudgeFacts(
                attribute=self.source.attribute,
                kind=f"people ({len(self.people.by_rater)})",
                name=shown(Path(self.source.path).name),
                sha256=sha256(Path(self.source.path)),
                licence=None,
                classes=self.people.groups,
                groups=self.groups,
                preprocessing="none: people looked at the images",
                preprocessing_from="labels of a CSV file; where raters differ, the majority's",
                accuracy=None,
                per_group=(),
                facts=() if self.named else (Fact(name=OCCURRING, value="--groups names others"),),
            )
        judge, told = self.judge, dict(self.judge.training)
        size = "x".join("any" if edge is None else str(edge) for edge in judge.size)
        licence = told.pop("licence", None)
        return JudgeFacts(
            attribute=self.source.attribute,
            kind=f"classifier: {told.pop('kind', 'ONNX')}",  # never "people", whatever the file says
            name=shown(self.source.made_from or judge.name),
            sha256=judge.sha256,
            licence=None if licence is None else str(licence),
            classes=judge.classes,
            groups=self.groups,
            preprocessing=_OWN.format(size=size) if judge.preprocessing is None else str(judge.preprocessing),
            preprocessing_from=shown(judge.preprocessing_from),
            accuracy=judge.accuracy,
            per_group=_accuracies(judge, self.groups),
            facts=tuple(
                Fact(name=shown(key), value=shown(str(value))) for key, value in told.items() if value is not None
            ),
        )


def _accuracies(judge: Judge, groups: Sequence[str]) -> tuple[GroupAccuracy, ...]:
    if judge.confusion is None:
        return ()
    rows = [(group, judge.confusion[judge.classes.index(group)], judge.classes.index(group)) for group in groups]
    return tuple(
        GroupAccuracy(
            group=group,
            n=int(row.sum()),
            accuracy=float(row[at] / row.sum()),
            interval=wilson(int(row[at]), int(row.sum())),
        )
        for group, row, at in rows
        if row.sum()
    )


def witnesses(
    sources: Sequence[Source],
    names: Sequence[str],
    *,
    groups: Sequence[Attribute],
    classes: Sequence[Attribute],
    preprocessing: Mapping[str, Path],
    threads: int,
    of_torch: Callable[[Source], Source],
) -> list[Witness]:
    """Judges, opened, for images of these `names`. `groups` and `classes` are for the attributes that they name.

    `of_torch` makes an ONNX file of a transformers folder. Raises DdmError as `Judge.load` and `read_people` do, and
    for names of attributes that repeat or that are unknown.
    """
    attributes = [source.attribute for source in sources]
    if len(set(attributes)) != len(attributes):
        raise DdmError(f"--judge: the attributes are {', '.join(attributes)}; expected different names")
    for option, given in (
        ("--groups", [each.name for each in groups]),
        ("--classes", [each.name for each in classes]),
        ("--preprocessing", list(preprocessing)),
    ):
        if unknown := [name for name in given if name not in attributes]:
            raise DdmError(f"{option}: attribute {unknown[0]!r} has no judge; judged are: {', '.join(attributes)}")
    wanted, named = ({each.name: each.groups for each in listed} for listed in (groups, classes))
    found = []
    for source in sources:
        name, judge, people = source.attribute, None, None
        if source.kind == "people":
            people = read_people(Path(source.path), name, names)
            known = people.groups
        else:
            ready = of_torch(source)
            judge = Judge.load(
                ready.path, classes=named.get(name), preprocessing=preprocessing.get(name), threads=threads
            )
            source, known = ready, judge.classes
        own = wanted.get(name, known)
        if people is None:
            check_known(own, known)
        if len(own) < 2 or len(set(own)) != len(own):
            raise DdmError(
                f"{source.path}: groups are {', '.join(own)}; expected two or more different ones (--groups)"
            )
        found.append(Witness(source, own, judge, people, people is None or name in wanted))
    return found


def alone(attributes: Sequence[Attribute], sources: Sequence[Source]) -> tuple[Attribute, ...]:
    """`attributes`, where the only one without a name ("group") is that of the only judge."""
    if len(attributes) == 1 and attributes[0].name == "group" and len(sources) == 1:
        return (Attribute(name=sources[0].attribute, groups=attributes[0].groups),)
    return tuple(attributes)


def checked(found: Sequence[Witness], where: str) -> tuple[Attribute, ...]:
    """The attributes as targets name them. Raises DdmError for names that no target could hold."""
    return check([Attribute(name=each.source.attribute, groups=each.groups) for each in found], where)
