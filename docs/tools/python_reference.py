"""The page on Python: every name of `ddm_rt.__all__`, and the types that these take and give, by mkdocstrings."""

from collections.abc import Iterator
from pathlib import Path

import griffe
from fields import Fields, fields, is_enum

_ERRORS = "ddm_rt.errors"
_FIRST = ("Pipeline", "Request", "Bundle")  # in the order in which a reader needs them
_INTRODUCTION = """# Python

The package has three names for you: `Pipeline` makes images, `Request` says which ones, and `Bundle` is the model on
disk. You import each of them from `ddm_rt`.

```py
from ddm_rt import Pipeline

generation = Pipeline.load("digits").generate(n=64, seed=0)
generation.save("out/")
```

This page is made of the docstrings in the code.
"""


def load(folder: Path) -> griffe.Module:
    """The package `ddm_rt` in a folder, which isn't imported."""
    extensions = griffe.load_extensions(Fields())
    package = griffe.load("ddm_rt", search_paths=[folder], extensions=extensions, allow_inspection=False)
    assert isinstance(package, griffe.Module)
    return package


def page(package: griffe.Module) -> str:
    """Markdown for mkdocstrings. Raises ValueError naming public names that say nothing of themselves."""
    public, others, errors = (list(part) for part in (_public(package), _others(package), _errors(package)))
    if silent := undocumented([*public, *others, *errors]):
        raise ValueError(f"public names without a docstring or a comment: {', '.join(silent)}")
    classes = [found for found in public if found.is_class]
    constants = "".join(f"- `ddm_rt.{found.name}`: {found.docstring.value}\n" for found in public if found.is_attribute)
    return (
        f"{_INTRODUCTION}\n{constants}\n"
        + "".join(_section(f"ddm_rt.{found.name}", found) for found in classes)
        + "## Types of their arguments and results\n\n"
        + "".join(_section(found.canonical_path, found, level=3) for found in others)
        + "## Errors\n\n"
        + "".join(_section(found.canonical_path, found, level=3) for found in errors)
    )


def undocumented(objects: list[griffe.Object]) -> list[str]:
    """Paths of those of these objects, and of their public members, that say nothing of themselves."""
    silent = []
    for found in objects:
        members = [] if not found.is_class or is_enum(found) else [*_methods(found), *fields(found).values()]
        silent += [each.canonical_path for each in (found, *members) if each.docstring is None]
    return silent


def _public(package: griffe.Module) -> Iterator[griffe.Object]:
    names = {str(name) for name in package.exports or ()}
    for name in (*_FIRST, *sorted(names.difference(_FIRST))):
        member = package[name]
        yield member.final_target if member.is_alias else member


def _others(package: griffe.Module) -> list[griffe.Class]:
    """Classes of this project in the signatures of public methods, properties and fields, once each, by name."""
    public = [found for found in _public(package) if isinstance(found, griffe.Class)]
    found: dict[str, griffe.Class] = {}
    for owner in public:
        for member in (*_methods(owner), *fields(owner).values()):
            for annotation in _annotations(member):
                for path in _paths(annotation):
                    named = _resolved(package, path)
                    if named is not None and named not in public:
                        found[named.canonical_path] = named
    return sorted(found.values(), key=lambda each: each.name)


def _errors(package: griffe.Module) -> Iterator[griffe.Class]:
    """Those that users catch: of `ddm_rt.errors`, and what a call that was cancelled raises."""
    module = package.modules_collection[_ERRORS]
    yield from (member for member in module.members.values() if isinstance(member, griffe.Class))
    yield package.modules_collection["ddm_rt.sample.generation.Cancelled"]


def _methods(owner: griffe.Class) -> list[griffe.Object]:
    """Public methods and properties, in the order of the file."""
    return [
        member
        for name, member in owner.members.items()
        if not name.startswith("_")
        and not member.is_alias
        and (member.is_function or (member.is_attribute and "property" in member.labels))
    ]


def _annotations(member: griffe.Object) -> list[griffe.Expr]:
    if isinstance(member, griffe.Function):
        every = [member.returns, *(parameter.annotation for parameter in member.parameters)]
    else:
        every = [member.annotation]
    return [each for each in every if isinstance(each, griffe.Expr)]


def _paths(annotation: griffe.Expr) -> list[str]:
    return [name.canonical_path for name in annotation.iterate(flat=True) if isinstance(name, griffe.ExprName)]


def _resolved(package: griffe.Module, path: str) -> griffe.Class | None:
    if not path.startswith("ddm_rt."):
        return None
    named = package.modules_collection[path]
    named = named.final_target if named.is_alias else named
    return named if isinstance(named, griffe.Class) else None


def _section(path: str, found: griffe.Object, level: int = 2) -> str:
    members = "".join(f"\n            - {member.name}" for member in _methods(found)) or " false"
    return f"::: {path}\n    options:\n        heading_level: {level}\n        members:{members}\n\n"
