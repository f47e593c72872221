"""Attributes with their groups, and targets over them in words.

A target has one part per attribute, or per set of attributes taken together, joined by semicolons:

    female=.5,male=.5                               the attribute is told by its groups' names
    gender:female=.5,male=.5                        or named
    gender:uniform; race:asian=.4,black=.3,white=.3 two attributes, each with its own shares
    female&asian=.1,female&white=.4,male&asian=.4,male&white=.1     shares of combinations
    gender&race:uniform                             every combination alike

The shares of a part sum to 1 within 1e-6; a group, or a combination, that isn't named gets 0.
"""

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddm_rt.config import Frozen
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.quota import SUM_TOLERANCE, share_of, total

_NAME = re.compile(r"[^=,;:&?\s]([^=,;:&?\n]*[^=,;:&?\s])?")
RESERVED = "code"  # targets over top codes start with it


class Attribute(Frozen):
    """A named attribute and the groups that its values are."""

    name: str
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """Wanted shares over the combinations of `attributes`, in the order of `cells(attributes)`."""

    attributes: tuple[Attribute, ...]
    shares: tuple[float, ...]

    @property
    def name(self) -> str:
        return "&".join(attribute.name for attribute in self.attributes)

    def __str__(self) -> str:
        wanted = zip(cells(self.attributes), self.shares, strict=True)
        return f"{self.name}:" + ",".join(f"{cell}={share:.9g}" for cell, share in wanted if share)


def cells(attributes: Sequence[Attribute]) -> list[str]:
    """The combinations of groups, the last attribute's changing fastest: "female&asian", "female&black", ..."""
    return ["&".join(groups) for groups in itertools.product(*(attribute.groups for attribute in attributes))]


def check(attributes: Sequence[Attribute], where: str) -> tuple[Attribute, ...]:
    """`attributes` as they are. Raises DdmError naming `where` for names that targets couldn't name."""
    if not attributes:
        raise DdmError(f"{where}: no attribute; expected at least one, with two or more groups")
    names = [attribute.name for attribute in attributes]
    if len(set(names)) != len(names):
        raise DdmError(f"{where}: the attributes are {', '.join(names)}; expected different names")
    for attribute in attributes:
        for name in (attribute.name, *attribute.groups):
            if not _NAME.fullmatch(name):
                raise DdmError(f"{where}: {name!r} is no name for a group; expected text without any of = , ; : & ?")
        if attribute.name == RESERVED:
            raise DdmError(f"{where}: the attribute {RESERVED!r} would read as a code in a target; name it otherwise")
        if len(attribute.groups) < 2 or len(set(attribute.groups)) != len(attribute.groups):
            raise DdmError(
                f"{where}: {attribute.name} has the groups {', '.join(attribute.groups) or '(none)'}; "
                "expected two or more different ones"
            )
    return tuple(attributes)


def parse_attributes(text: str, where: str = "--groups") -> tuple[Attribute, ...]:
    """From "female,male" (one attribute, named "group") or "gender:female,male;race:asian,black,white"."""
    attributes = []
    for part in text.split(";"):
        name, colon, groups = part.rpartition(":")
        names = tuple(group.strip() for group in groups.split(","))
        attributes.append(Attribute(name=name.strip() if colon else "group", groups=names))
    return check(attributes, where)


def parse_target(text: str, attributes: Sequence[Attribute]) -> tuple[Part, ...]:
    """The parts of a target, ordered as `attributes`.

    Raises DdmError quoting the target for an unknown group or attribute, one that is named twice or belongs to two
    attributes, a share that is no number, not finite or negative, and shares that don't sum to 1.
    """
    parts = [_part(piece, text, attributes) for piece in text.split(";")]
    used = [attribute.name for part in parts for attribute in part.attributes]
    if len(set(used)) != len(used):
        raise DdmError(f"target {text!r}: {_twice(used)} stands in two parts; expected each attribute in one")
    names = [attribute.name for attribute in attributes]
    return tuple(sorted(parts, key=lambda part: names.index(part.attributes[0].name)))


def uniform(attributes: Sequence[Attribute]) -> tuple[Part, ...]:
    """Every attribute with even shares of its groups."""
    return tuple(Part((a,), (1 / len(a.groups),) * len(a.groups)) for a in attributes)


def _part(piece: str, text: str, attributes: Sequence[Attribute]) -> Part:
    named, colon, body = piece.rpartition(":")
    chosen = _named(named, text, attributes) if colon else None
    among = tuple(attributes) if chosen is None else chosen
    if body.strip() == "uniform":
        if chosen is None:
            raise DdmError(f"target {text!r}: 'uniform' of what? expected ATTRIBUTE:uniform")
        count = len(cells(chosen))
        return Part(chosen, (1 / count,) * count)
    wanted: dict[tuple[str, ...], float] = {}
    for item in body.split(","):
        left, equals, share = (word.strip() for word in item.partition("="))
        if not equals:
            raise DdmError(f"target {text!r}: {item.strip()!r}; expected GROUP=SHARE")
        groups = [word.strip() for word in left.split("&")]
        found = _attributes_of(groups, text, among)
        if chosen is None:
            chosen = tuple(a for a in attributes if a in found)
        if set(map(_name, found)) != set(map(_name, chosen)):
            raise DdmError(
                f"target {text!r}: {left} names {', '.join(map(_name, found))}; this part is about "
                f"{', '.join(map(_name, chosen))} (parts are joined by ;)"
            )
        by_attribute = {attribute.name: group for attribute, group in zip(found, groups, strict=True)}
        cell = tuple(by_attribute[attribute.name] for attribute in chosen)
        if cell in wanted:
            raise DdmError(f"target {text!r}: {left} is given twice")
        wanted[cell] = value = share_of(left, share, text)
        if not (math.isfinite(value) and value >= 0):
            raise DdmError(f"target {text!r}: the share of {left} is {value}; expected a finite number, not negative")
    assert chosen is not None
    size = total(wanted.values())
    if abs(size - 1) > SUM_TOLERANCE:
        raise DdmError(f"target {text!r}: the shares of {'&'.join(map(_name, chosen))} sum to {size:.9g}; expected 1")
    every = itertools.product(*(attribute.groups for attribute in chosen))
    return Part(chosen, tuple(wanted.get(cell, 0.0) / size for cell in every))


def _named(text: str, target: str, attributes: Sequence[Attribute]) -> tuple[Attribute, ...]:
    known: Mapping[str, Attribute] = {attribute.name: attribute for attribute in attributes}
    names = [name.strip() for name in text.split("&")]
    for name in names:
        if name not in known:
            raise DdmError(f"target {target!r}: attribute {name!r} is unknown; known: {', '.join(known)}")
    if len(set(names)) != len(names):
        raise DdmError(f"target {target!r}: {_twice(names)} is named twice")
    return tuple(attribute for attribute in attributes if attribute.name in names)


def _attributes_of(groups: Sequence[str], text: str, among: Sequence[Attribute]) -> list[Attribute]:
    """The attribute of each group."""
    found = []
    for group in groups:
        owners = [attribute for attribute in among if group in attribute.groups]
        if not owners:
            known = "; ".join(f"{a.name}: {', '.join(a.groups)}" for a in among)
            raise DdmError(f"target {text!r}: group {group!r} is unknown; known: {known}")
        if len(owners) > 1:
            names = ", ".join(map(_name, owners))
            raise DdmError(f"target {text!r}: {group!r} is a group of {names}; expected ATTRIBUTE: before it")
        found.append(owners[0])
    if len({attribute.name for attribute in found}) != len(found):
        raise DdmError(f"target {text!r}: {'&'.join(groups)} names two groups of {_twice([a.name for a in found])}")
    return found


def _name(attribute: Attribute) -> str:
    return attribute.name


def _twice(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
