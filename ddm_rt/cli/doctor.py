"""`ddm-rt doctor` and `version`: what is installed, and what runs here."""

from typing import Annotated

from rich.table import Table
from rich.text import Text
from typer import Argument

import ddm_rt
from ddm_rt.bundle import Bundle
from ddm_rt.cli.app import app, console, say


@app.command()
def doctor(
    bundle: Annotated[str | None, Argument(help="Also: which backends and plans of this bundle fit.")] = None,
) -> None:
    """What this machine can run, and why not the rest.

    Example: ddm-rt doctor bundles/ours
    """
    from ddm_rt.workflows.doctor import checks

    table = Table("part", "available", "detail")
    for name, ok, detail in checks(None if bundle is None else Bundle.load(bundle)):
        table.add_row(name, Text("yes", "green") if ok else Text("no", "yellow"), Text(detail))
    console.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    say(ddm_rt.__version__)
