"""`ddm-rt demo`: biased digits -> three models -> bundles -> figures -> one page."""

from pathlib import Path
from typing import Annotated

from typer import Option

from ddm_rt.cli import display
from ddm_rt.cli.app import console, makes_models, say


@makes_models()
def demo(
    out: Annotated[Path, Option(help="Directory to work in. The same command resumes what was stopped.")] = Path(
        "demo-out"
    ),
    data: Annotated[str, Option(help="Training images: two classes of the digits, biased.")] = "digits:3,8@4:1",
    steps: Annotated[int | None, Option(help="Number of training steps of each model.")] = None,
) -> None:
    """Train three models on biased digits and compare them in a report. It takes minutes, not hours.

    The models are a plain one, DDM as published, and ours. Each is exported, sampled and evaluated.

    Example: ddm-rt demo --out demo-out
    """
    from ddm_rt.evaluate.report.evaluation_page import terminal_table
    from ddm_rt.workflows.demo import demo as run_demo

    with display.progress(console) as bars:
        page, results = run_demo(out, data, steps, tell=say, progress=lambda name: display.step_callback(bars, name))
    console.print(terminal_table(results))
    say(f"report: {page}")
