"""`ddm-rt upgrade`: a bundle of format 1, and the ledgers that were used with it, in format 2."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_rt.bundle import FORMAT, INDEX, Bundle
from ddm_rt.cli.app import app, say
from ddm_rt.errors import DdmError


@app.command()
def upgrade(
    bundle: Annotated[
        str, typer.Argument(help="A bundle directory; to move ledgers alone, also the shipped one: digits.")
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the upgraded bundle here. Without it, the bundle is upgraded where it is."),
    ] = None,
    ledger: Annotated[
        list[Path] | None, typer.Option("--ledger", help="A ledger to move to the new bundle id; may be repeated.")
    ] = None,
) -> None:
    """Bring a bundle of an earlier format to the present one, with its calibrations and recorded gates.

    Its graphs stay as they are and images stay the same. Its id changes; the new bundle records the old id, so that old
    manifests replay. A ledger counts for one id, so each must be moved, once; first stop what draws from it with the
    old bundle. It is safe to run the command again: what is done is left alone.

    Examples:

        ddm-rt upgrade bundles/ours

        ddm-rt upgrade bundles/ours --out bundles/ours-2 --ledger counts.ledger

        ddm-rt upgrade digits --ledger counts.ledger
    """
    from ddm_rt.sample.balance.ledger import Ledger
    from ddm_rt.upgrade import upgrade as upgraded_bundle

    opened = Bundle.load(bundle)
    target = opened
    if out is not None and (out / INDEX).is_file():  # this command, again
        target = Bundle.load(out)
        if not target.is_of(opened.bundle_id) or target.index.schema_version != FORMAT:
            raise DdmError(f"--out {out}: holds another bundle, {target.bundle_id[:12]}; choose another")
    elif out is not None and opened.index.schema_version == FORMAT:
        raise DdmError(f"--out {out}: {opened.path} has format {FORMAT} already; there is nothing to write")
    for path in ledger or ():
        with Ledger(path) as counts:
            counts.check_upgrade(target)
    current = target.index.schema_version == FORMAT
    made = upgraded_bundle(target, None if current else out)
    say(f"bundle: {made.path}{' (it had this format already)' if current else ''}\nid: {made.bundle_id}")
    if made.index.former_ids:
        say(f"made from: {', '.join(made.index.former_ids)}")
    for path in ledger or ():
        with Ledger(path) as counts:
            moved = counts.move_to(made)
        say(f"ledger: {path}: " + (f"{moved} stream{'s' * (moved != 1)} moved" if moved else "nothing to move"))
