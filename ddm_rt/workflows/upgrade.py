"""`ddm-rt upgrade`: a bundle of format 1, and the ledgers that were used with it, in format 2."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ddm_rt.bundle import FORMAT, INDEX, Bundle
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.upgrade import upgrade as upgrade_bundle


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
