"""`ddm-rt steer`: codes for a finished model, without training."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import errors, makes_models, say
from ddm_rt.cli.train import Set
from ddm_rt.config import SteeringSite

_STAGES = ("reading", "features", "encoding", "drawing", "responses")


@makes_models(Codes="data codes labels contrast features prompt", Steering="site strength steered_from images")
def steer(
    source: Annotated[Path, Argument(help="A finished run without codes, or a checkpoint folder (diffusers).")],
    out: options.Out,
    data: Annotated[
        str | None, Option(help="Images that codes are found in. By default those that the run was trained on.")
    ] = None,
    codes: Annotated[
        Path | None, Option("--codes", "--factors", help="factors.json of ddm-rt discover, or a JSON file with codes.")
    ] = None,
    labels: Annotated[Path | None, Option(help="CSV file (image,label) with labels of 64 to 256 images.")] = None,
    contrast: Annotated[
        str | None, Option(help="Prompts with | between them, in place of images. Each is a code.")
    ] = None,
    features: Annotated[
        Path | None, Option(help="Encoder to find codes with: ONNX file, or folder with CLIP's.")
    ] = None,
    prompt: Annotated[str | None, Option(help="Prompt of the images to which metadata.csv gives none.")] = None,
    site: Annotated[
        str | None,
        Option(
            help=f"Where codes steer, one of: {', '.join(SteeringSite)}. By default attention for a model that takes "
            "prompts, else prediction."
        ),
    ] = None,
    strength: Annotated[
        float | None,
        Option(
            min=0,
            help="How far an image is moved to its code; 1: the mean of its images. By default 2, or 1 for attention.",
        ),
    ] = None,
    steered_from: Annotated[
        float, Option("--from", min=0, help="Lowest timestep that is steered. 0 steers every step.")
    ] = 0.0,
    images: Annotated[
        int | None,
        Option(min=1, help="Images of a code to measure attention with (256), or to draw of a prompt (16)."),
    ] = None,
    variant: Annotated[str | None, Option(help="Variant of the checkpoint's weight files, e.g. fp16.")] = None,
    set_: Set = None,
) -> None:
    """Give a model codes that steer it, without training. Quotas, ledgers and targets then work as with trained codes.

    The codes are found in images as ddm-rt train finds them, or come from a file, a few labels or prompts. A step of
    the steered model costs what a step of the model costs.

    Examples:

        ddm-rt steer runs/plain --out runs/steered
        ddm-rt steer runs/plain --factors splits/factors.json --out runs/steered
        ddm-rt steer runs/plain --labels labels.csv --strength 3 --out runs/steered
        ddm-rt steer checkpoints/sd15 --data photos/ --prompt "a photo of a person" --out runs/sd
        ddm-rt steer checkpoints/sd15 --contrast "a photo of a man|a photo of a woman" --out runs/sd
        ddm-rt export runs/steered --out bundles/steered
    """
    from ddm_rt.workflows.steer import steer as steer_model

    fields = options.assignments(set_) | options.given(
        {
            "data.source": data,
            "data.prompt": prompt,
            "codes.source": codes,
            "codes.labels": labels,
            "features.encoder": features,
        }
    )
    with display.progress(errors) as bars:
        progress = {stage: display.step_callback(bars, stage) for stage in _STAGES}
        config, found = steer_model(
            source,
            out,
            fields,
            site=site,
            strength=strength,
            steered_from=steered_from,
            images=images,
            contrast=contrast,
            variant=variant,
            progress=progress,
        )
    assert config.steering is not None
    say(f"codes: {found.num_codes}, {found.num_top_codes} of which get equal shares (codes are not groups)")
    places = len(config.model.steering)
    say(f"steers: {config.steering.site}, {places} place{'s' * (places != 1)}, strength {config.steering.strength:g}")
    say(f"run: {out}")
