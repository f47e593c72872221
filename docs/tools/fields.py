"""Griffe extension: what a class says of its fields, as a table in its docstring.

The house writes a field's meaning in a comment behind it, or above it, and in `Told` where the command line and HTTP
offer the field too. Both become rows of an "Attributes" section. `Annotated` is left away: limits stand in the text.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import griffe

from ddm_rt.sample.request import told_fields

_LIMITS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
_BEHIND = re.compile(r"\s#\s(?!noqa|type:)(?P<text>.+?)(?:\s+#\s*noqa.*)?$")


class Fields(griffe.Extension):
    """Documents fields by what stands beside them, and classes by their fields."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        text = _told(attr) or _comment(attr)
        if isinstance(attr.annotation, griffe.ExprSubscript) and attr.annotation.canonical_path == "typing.Annotated":
            attr.annotation = attr.annotation.slice.elements[0]
        if attr.docstring is None and text:
            attr.docstring = griffe.Docstring(text, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for found in _classes(pkg):
            if is_enum(found):
                rows = "\n\nOne of: " + ", ".join(f"`{value}`" for value in _values(found)) + "."
            else:
                rows = "".join(f"\n    {name}: {_text(field)}" for name, field in fields(found).items())
                rows = f"\n\nAttributes:{rows}" if rows else ""
            if found.docstring is not None and rows:
                found.docstring.value += rows


def fields(found: griffe.Class) -> dict[str, griffe.Attribute]:
    """The public fields of a class by name, those of its bases in this project first."""
    every: dict[str, griffe.Attribute] = {}
    for owner in (*reversed(found.mro()), found):
        for name, member in owner.members.items():
            own = member.is_attribute and not member.is_alias and "property" not in member.labels
            if own and not name.startswith("_") and name != "model_config":
                every[name] = member
    return every


def is_enum(found: griffe.Class) -> bool:
    return any(str(base).endswith("Enum") for base in found.bases)


def _values(found: griffe.Class) -> list[str]:
    return [str(member.value).strip("'\"") for member in found.members.values() if member.is_attribute]


def _classes(module: griffe.Module) -> list[griffe.Class]:
    own = [member for member in module.members.values() if not member.is_alias]
    inner = [found for member in own if member.is_module for found in _classes(member)]
    return [member for member in own if member.is_class] + inner


def _text(field: griffe.Attribute) -> str:
    return "" if field.docstring is None else " ".join(field.docstring.value.split())


def _told(attribute: griffe.Attribute) -> str:
    """What `Told` says of a field of `Request`, with its limits."""
    if attribute.path not in (f"ddm_rt.sample.request.Request.{name}" for name in told_fields()):
        return ""
    field = told_fields()[attribute.name]
    found = [limit for each in field.limits for limit in each.metadata]
    limits = [
        f"{words} {_number(getattr(limit, name))}"
        for limit in found
        for name, words in _LIMITS.items()
        if hasattr(limit, name)
    ]
    return f"{field.told.help.removesuffix('.')} ({', '.join(limits)})." if limits else field.told.help


def _number(value: float) -> str:
    return "2^64 - 1" if value == 2**64 - 1 else str(value)


def _comment(attribute: griffe.Attribute) -> str:
    """The comment behind the field's last line, or the lines of comment right above its first."""
    if attribute.lineno is None or attribute.endlineno is None or not isinstance(attribute.filepath, Path):
        return ""
    lines = _lines(attribute.filepath)
    if behind := _BEHIND.search(lines[attribute.endlineno - 1]):
        return behind["text"]
    above: list[str] = []
    for line in reversed(lines[: attribute.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip().removeprefix("# "))
    return " ".join(above)


@cache
def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
