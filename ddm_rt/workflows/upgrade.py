"""`ddm-rt upgrade`: a bundle of format 1, and the ledgers that were used with it, in format 2: the same graphs, and so
the same images, under a new id.

The new bundle records the id that it was made from, so that manifests, calibrations and recorded gates of that id stay
valid as they are: nothing in them is rewritten. A ledger is moved by `sample.balance.ledger.Ledger.move_to`.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddm_rt.bundle import FORMAT, INDEX, SETTINGS, Bundle, Former, Index, bundle_id, check_writable, entries
from ddm_rt.errors import DdmError
from ddm_rt.files import atomic_directory, locked, sha256, write_atomic
from ddm_rt.runtime import FORMAT_1
from ddm_rt.sample.balance.ledger import Ledger


@dataclass(frozen=True)
class Upgraded:
    """The bundle in the present format, whether it was so before, and how many streams of each ledger were moved."""

    bundle: Bundle
    was_current: bool
    moved: tuple[int, ...]


def upgrade(source: str, out: Path | None = None, ledgers: Sequence[Path] = ()) -> Upgraded:
    """Bring the bundle `source` to the present format, in place or as the directory `out`, and move ledgers to its id.

    What is done already is left alone. Raises DdmError for bad input of any kind, before anything is written: another
    bundle at `out`, nothing to write there, or a ledger that can't be moved.
    """
    opened = Bundle.load(source)
    target = opened
    if out is not None and (out / INDEX).is_file():  # an earlier call made it
        target = Bundle.load(out)
        if not target.is_of(opened.bundle_id) or target.index.schema_version != FORMAT:
            raise DdmError(f"--out {out}: holds another bundle, {target.bundle_id[:12]}; choose another")
    elif out is not None and opened.index.schema_version == FORMAT:
        raise DdmError(f"--out {out}: {opened.path} has format {FORMAT} already; there is nothing to write")
    for path in ledgers:
        with Ledger(path) as counts:
            counts.check_upgrade(target)
    current = target.index.schema_version == FORMAT
    made = upgrade_bundle(target, None if current else out)
    moved = []
    for path in ledgers:
        with Ledger(path) as counts:
            moved.append(counts.move_to(made))
    return Upgraded(made, current, tuple(moved))


def upgrade_bundle(bundle: Bundle, out: Path | None = None) -> Bundle:
    """`bundle` in the present format: as the new directory `out`, or where it is, where `out` is None.

    A bundle that has the present format is returned as it is. In place, its index is what counts: a process that is
    killed before the new one stands leaves the old bundle, one that is killed later the new bundle and perhaps some
    files that it doesn't list; doing it again removes them. Raises DdmError where `out` is not empty or, without one,
    the bundle can't be written to.
    """
    if out is not None:
        return _copy(bundle, out)
    if bundle.index.schema_version == FORMAT and not (_left_over(bundle) and os.access(bundle.path, os.W_OK)):
        return bundle
    check_writable(bundle, "upgrades")
    with locked(bundle.path):
        current = Bundle.load(bundle.path)  # others may have added to it, or have done this
        if current.index.schema_version != FORMAT:
            current.write_settings(bundle.path)
            write_atomic(bundle.path / INDEX, _index(current, bundle.path).model_dump_json(indent=1))
            current = Bundle.load(bundle.path)
        for path in _left_over(current):
            path.unlink(missing_ok=True)
    return current


def _left_over(bundle: Bundle) -> list[Path]:
    """Files of the format that the bundle had, and what a process that was killed has left of its own."""
    before = {(name, digest) for former in bundle.index.former for name, digest in former.files.items()}
    unlisted = [
        bundle.path / name
        for name, digest in before
        if name not in bundle.index.files and (bundle.path / name).is_file() and sha256(bundle.path / name) == digest
    ]
    unfinished = [path for name in (INDEX, *SETTINGS[:2]) for path in bundle.path.glob(f".{name}.*")]
    return [path for path in (*unlisted, *unfinished) if path.exists()]


def _copy(bundle: Bundle, out: Path) -> Bundle:
    with atomic_directory(out) as temporary:
        for name in bundle.index.files.keys() - set(SETTINGS):
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle.path / name, temporary / name)
        bundle.write_settings(temporary)
        (temporary / INDEX).write_text(_index(bundle, temporary).model_dump_json(indent=1))
        Bundle.load(temporary)
    return Bundle.load(out)


def _index(bundle: Bundle, directory: Path) -> Index:
    """The index of the new files in `directory` and of those of `bundle` that stay."""
    old = bundle.index
    kept = {name: entry for name, entry in old.files.items() if name not in SETTINGS}
    files = dict(sorted((kept | entries(directory, SETTINGS[:2])).items()))
    former = old.former
    if old.schema_version != FORMAT:
        hashes = {name: old.files[name].sha256 for name in FORMAT_1}
        former += (Former(bundle_id=old.bundle_id, files=hashes),)
    changes = {"schema_version": FORMAT, "bundle_id": bundle_id(files), "former": former, "files": files}
    return old.model_copy(update=changes)
