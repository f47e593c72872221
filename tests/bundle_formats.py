"""Bundles of both formats that a test may change field by field, with an index that fits again."""

import json
from pathlib import Path
from typing import Any

from format1 import write_format_1

from ddm_rt.bundle import INDEX, Bundle, FileEntry, bundle_id
from ddm_rt.files import sha256
from ddm_rt.workflows.upgrade import upgrade_bundle as upgrade

Json = dict[str, Any]


def write_format(number: int, bundle: Path, out: Path) -> Path:
    """A bundle of that format that says what `bundle` does; of format 2 by way of format 1, and so with a former id."""
    if number == 1:
        return write_format_1(Bundle.load(bundle), out).path
    return upgrade(Bundle.load(write_format(1, bundle, out.with_name(f"{out.name} before"))), out).path


def read(path: Path) -> Json:
    tree: Json = json.loads(path.read_bytes())
    return tree


def write(path: Path, tree: Json) -> None:
    path.write_text(json.dumps(tree))


def reindex(bundle: Path) -> str:
    """Files' hashes and the bundle's id as they are now, in an index that keeps its other fields; the id."""
    paths = sorted(path for path in bundle.rglob("*") if path.is_file() and path != bundle / INDEX)
    files = {
        path.relative_to(bundle).as_posix(): FileEntry(sha256=sha256(path), bytes=path.stat().st_size) for path in paths
    }
    listed = {name: entry.model_dump() for name, entry in files.items()}
    write(bundle / INDEX, read(bundle / INDEX) | {"files": listed, "bundle_id": bundle_id(files)})
    return bundle_id(files)


def change(bundle: Path, name: str, *fields: str | int, value: Any) -> None:
    """Another value at `fields` of a JSON file, and an index that fits."""
    tree: Any = read(bundle / name)
    at = tree
    for field in fields[:-1]:
        at = at[field]
    at[fields[-1]] = value
    write(bundle / name, tree)
    if name != INDEX:
        reindex(bundle)
