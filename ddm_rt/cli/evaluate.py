"""`ddm-rt train-judge` and `evaluate`: the classifier that measures groups, and what it finds in several methods."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import app, console, say
from ddm_rt.sample.request import Request


@app.command("train-judge")
def train_judge(
    out: Annotated[Path, Option("--out", help="The ONNX file to write.")],
    data: Annotated[
        str, Option(help="Labelled images that no generator sees: digits (its judge split), or a folder.")
    ] = "digits",
    held_out: Annotated[
        str | None, Option(help="Labelled images that measure the judge; digits: its reference split.")
    ] = None,
    steps: Annotated[int, Option(help="Optimizer steps.")] = 1200,
    seed: Annotated[int, Option()] = 0,
    image_size: Annotated[int, Option()] = 32,
    channels: Annotated[int, Option()] = 1,
) -> None:
    """Train the classifier that measures groups. It never takes part in training or sampling a generator.

    Example: ddm-rt train-judge --data digits --out judge.onnx
    """
    from ddm_rt.workflows.train_judge import make_judge

    with display.bar("judge") as update:
        accuracy = make_judge(
            data, held_out, out, steps=steps, seed=seed, image_size=image_size, channels=channels, progress=update
        )
    say(f"judge: {out}\nheld-out accuracy: {accuracy:.4f}")


@app.command()
@options.prompts
def evaluate(
    methods: Annotated[
        list[str], Argument(metavar="[NAME=]PATH...", help="Bundles, or directories that `sample` wrote.")
    ],
    out: options.Out,
    *,
    judge: options.Judge = "digits",
    groups: options.Groups = "3,8",
    reference: Annotated[str, Option(help="Held-out labelled images: digits:..., or a folder.")] = "digits:3,8",
    training: Annotated[str | None, Option(help="The training images, for nearest neighbours.")] = None,
    n: Annotated[int, Option("-n", help="Images for each bundle.")] = 1000,
    seed: options.Seed = 0,
    min_per_group: Annotated[
        int, Option(help="Equal n per group for quality; bundles generate until it is reached.")
    ] = 400,
    classes: options.Classes = None,
    attribute: Annotated[
        list[str] | None, Option(help="Also compare its distribution: slant, skin_luminance or MODULE:FUNCTION.")
    ] = None,
    asked: Annotated[
        str | None, Option(help="The group that each top code stands for, code:0=3,code:1=8; gives SPD.")
    ] = None,
    request: Request,
) -> None:
    """Measure group shares and quality with a judge, and write report/index.html.

    Prompts are for the bundles, which generate; images of a sampled directory keep theirs.

    Examples:

        ddm-rt evaluate vanilla=bundles/vanilla ours=bundles/ours --training digits:3,8@4:1 --out report/

        ddm-rt evaluate sd --prompt "a nurse" --judge gender.onnx --groups female,male --reference photos/ --out report/
    """
    from ddm_rt.evaluate.run import evaluate_methods, text_of

    with display.bar("generating") as update:
        page, table = evaluate_methods(
            [options.named(text) for text in methods],
            out,
            judge=judge,
            classes=options.names(classes),
            groups=groups.split(","),
            reference=reference,
            training=training,
            n=n,
            seed=seed,
            min_per_group=min_per_group,
            attributes=attribute or (),
            asked=asked,
            text=text_of(request),
            on_step=update,
        )
    console.print(table)
    say(f"report: {page}")
