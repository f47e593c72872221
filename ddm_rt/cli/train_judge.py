"""`ddm-rt train-judge`: the classifier that measures groups."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import app, errors, say


@app.command("train-judge")
def train_judge(
    out: Annotated[Path, typer.Option("--out", help="The ONNX file to write.")],
    data: Annotated[
        str, typer.Option(help="Labelled images that no generator sees: digits (its judge split), or a folder.")
    ] = "digits",
    held_out: Annotated[
        str | None, typer.Option(help="Labelled images that measure the judge; digits: its reference split.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1200,
    seed: Annotated[int, typer.Option()] = 0,
    image_size: Annotated[int, typer.Option()] = 32,
    channels: Annotated[int, typer.Option()] = 1,
) -> None:
    """Train the classifier that measures groups. It never takes part in training or sampling a generator.

    Example: ddm-rt train-judge --data digits --out judge.onnx
    """
    from ddm_rt.workflows.train_judge import make_judge

    with display.progress(errors) as bars:
        callback = display.callback(bars, "judge")
        accuracy = make_judge(
            data,
            held_out,
            out,
            steps=steps,
            seed=seed,
            image_size=image_size,
            channels=channels,
            progress=lambda done, loss: callback(done, steps, {"loss": loss}),
        )
    say(f"judge: {out}\nheld-out accuracy: {accuracy:.4f}")
