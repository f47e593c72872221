"""`ddm-rt demo`: biased digits -> three models -> bundles -> figures -> one page."""

from pathlib import Path
from typing import Annotated

from typer import Option

from ddm_rt.cli import display
from ddm_rt.cli.app import app, console, say


@app.command()
def demo(
    out: Annotated[Path, Option("--out", help="Working directory; a second run resumes it.")] = Path("demo-out"),
    data: Annotated[str, Option(help="A biased set of the shipped digits, two classes.")] = "digits:3,8@4:1",
    steps: Annotated[int | None, Option(help="Training steps of each model.")] = None,
) -> None:
    """Train vanilla, paper mode and ours on biased digits, then sample, evaluate and report. Minutes, not hours.

    Example: ddm-rt demo --out demo-out
    """
    from ddm_rt.evaluate.report.evaluation_page import terminal_table
    from ddm_rt.workflows.demo import demo as run_demo

    with display.progress(console) as bars:
        page, results = run_demo(out, data, steps, tell=say, progress=lambda name: display.step_callback(bars, name))
    console.print(terminal_table(results))
    say(f"report: {page}")
