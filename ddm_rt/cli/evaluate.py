"""`ddm-rt evaluate`: group shares and quality of several methods."""

from typing import Annotated

import typer

from ddm_rt.cli import arguments, display
from ddm_rt.cli.app import Guidance, NegativePrompt, Out, Prompt, app, console, errors, say


@app.command()
def evaluate(
    methods: Annotated[
        list[str], typer.Argument(metavar="[NAME=]PATH...", help="Bundles, or directories that `sample` wrote.")
    ],
    out: Out,
    judge: Annotated[str, typer.Option(help="digits, or an ONNX classifier.")] = "digits",
    groups: Annotated[str, typer.Option(help="Two or more of the judge's classes, by comma.")] = "3,8",
    reference: Annotated[str, typer.Option(help="Held-out labelled images: digits:..., or a folder.")] = "digits:3,8",
    training: Annotated[str | None, typer.Option(help="The training images, for nearest neighbours.")] = None,
    n: Annotated[int, typer.Option("-n", help="Images for each bundle.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the images.")] = 0,
    min_per_group: Annotated[
        int, typer.Option(help="Equal n per group for quality; bundles generate until it is reached.")
    ] = 400,
    classes: Annotated[str | None, typer.Option(help="The judge's classes, where its file doesn't name them.")] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="Also compare its distribution: slant, skin_luminance or MODULE:FUNCTION.")
    ] = None,
    asked: Annotated[
        str | None,
        typer.Option(help="The group that each top code stands for, code:0=3,code:1=8; gives SPD."),
    ] = None,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: Guidance = None,
) -> None:
    """Measure group shares and quality with a judge, and write report/index.html.

    Prompts are for the bundles, which generate; images of a sampled directory keep theirs.

    Examples:

        ddm-rt evaluate vanilla=bundles/vanilla ours=bundles/ours --training digits:3,8@4:1 --out report/

        ddm-rt evaluate sd --prompt "a nurse" --judge gender.onnx --groups female,male --reference photos/ --out report/
    """
    from ddm_rt.evaluate.run import evaluate_methods

    with display.progress(errors) as bars:
        page, table = evaluate_methods(
            [arguments.named(text) for text in methods],
            out,
            judge=judge,
            classes=classes.split(",") if classes else None,
            groups=groups.split(","),
            reference=reference,
            training=training,
            n=n,
            seed=seed,
            min_per_group=min_per_group,
            attributes=attribute or (),
            asked=asked,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            on_step=display.step_callback(bars, "generating"),
        )
    console.print(table)
    say(f"report: {page}")
