"""`ddm-rt train-judge` and `evaluate`: the classifier that measures groups, and what it finds in several methods."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, measures, say
from ddm_rt.sample.request import Request


@measures("train-judge")
def train_judge(
    out: Annotated[Path, Option(help="ONNX file to write.")],
    data: Annotated[str, Option(help="Labelled images that no generator sees: digits, or a folder.")] = "digits",
    held_out: Annotated[str | None, Option(help="Labelled images that measure the judge. digits has its own.")] = None,
    steps: Annotated[int, Option(help="Number of optimizer steps.")] = 1200,
    seed: Annotated[int, Option(help="Seed of the training.")] = 0,
    image_size: Annotated[int, Option(help="Width and height of the images that the judge sees.")] = 32,
    channels: Annotated[int, Option(help="1 for grey images, 3 for colour.")] = 1,
) -> None:
    """Train the classifier that measures groups. No generator is trained or sampled with it.

    Example: ddm-rt train-judge --data digits --out judge.onnx
    """
    from ddm_rt.workflows.train_judge import make_judge

    with display.bar("judge") as update:
        accuracy = make_judge(
            data, held_out, out, steps=steps, seed=seed, image_size=image_size, channels=channels, progress=update
        )
    say(f"judge: {out}\nheld-out accuracy: {accuracy:.4f}")


@measures(More_measurements="training min_per_group attribute asked")
@options.prompts
def evaluate(
    methods: Annotated[
        list[str], Argument(metavar="[NAME=]PATH...", help="Bundles, or directories that ddm-rt sample wrote.")
    ],
    out: options.Out,
    *,
    judge: options.Judge = "digits",
    groups: options.Groups = "3,8",
    reference: Annotated[str, Option(help="Labelled images for quality: digits:CLASSES, or a folder.")] = "digits:3,8",
    n: Annotated[int, Option("-n", help="Number of images that each bundle makes.")] = 1000,
    seed: options.Seed = 0,
    training: Annotated[str | None, Option(help="Training images, to look for nearest neighbours in.")] = None,
    min_per_group: Annotated[int, Option(help="Images per group for quality. Bundles make enough.")] = 400,
    classes: options.Classes = None,
    attribute: Annotated[
        list[str] | None, Option(help="Attribute to compare, too: slant, skin_luminance or MODULE:FUNCTION.")
    ] = None,
    asked: Annotated[str | None, Option(help="Group of each top code, code:0=3,code:1=8, for the SPD.")] = None,
    request: Request,
) -> None:
    """Measure group shares and quality with a judge, and write a report. Its page is index.html in --out.

    Prompts are for bundles, which make images. The images of a sampled directory keep their own prompts.

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
