"""`ddm-rt doctor`: each backend, TensorRT flavour, kernel flavour and plan, available or the reason why not."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from ddm_rt.bundle import Bundle
from ddm_rt.cli.app import app, console


@app.command()
def doctor(
    bundle: Annotated[str | None, typer.Argument(help="Also: which backends and plans of this bundle fit.")] = None,
) -> None:
    """What this machine can run, and why not the rest.

    Example: ddm-rt doctor bundles/ours
    """
    console.print(table(None if bundle is None else Bundle.load(bundle)))


def table(bundle: Bundle | None = None) -> Table:
    """What `checks` found, for a terminal."""
    from ddm_rt.workflows.doctor import checks

    shown = Table("part", "available", "detail")
    for name, ok, detail in checks(bundle):
        shown.add_row(name, Text("yes", "green") if ok else Text("no", "yellow"), Text(detail))
    return shown
