"""`ddm-rt demo`: biased digits -> three models -> bundles -> figures -> one page."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_rt.cli.app import app, console, say


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Working directory; a second run resumes it.")] = Path("demo-out"),
    data: Annotated[str, typer.Option(help="A biased set of the shipped digits, two classes.")] = "digits:3,8@4:1",
    steps: Annotated[int | None, typer.Option(help="Training steps of each model.")] = None,
) -> None:
    """Train vanilla, paper mode and ours on biased digits, then sample, evaluate and report. Minutes, not hours.

    Example: ddm-rt demo --out demo-out
    """
    from ddm_rt.cli.demo_run import run_demo

    page, table = run_demo(out, data, steps, console)
    console.print(table)
    say(f"report: {page}")
