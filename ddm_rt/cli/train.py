"""`ddm-rt train`: a model from images, from nothing or from a Stable Diffusion checkpoint."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from ddm_rt.cli import arguments, display
from ddm_rt.cli.app import app, console, errors, say
from ddm_rt.config import IndicatorMode
from ddm_rt.errors import DdmError
from ddm_rt.presets import PRESETS

_STAGES = {"reading": "reading", "features": "features", "encoding": "encoding", "train": "training"}
CHECKPOINT = "Checkpoints"


class Computed(StrEnum):
    """What the forward and backward passes compute in; trained weights are fp32."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"


Steps = Annotated[int | None, typer.Option(help="Optimizer steps.")]
TrainingThreads = Annotated[
    int | None,
    typer.Option(help="CPU threads; part of what decides the weights."),
]
ComputedIn = Annotated[Computed | None, typer.Option(help="What a step computes in.")]
LogSteps = Annotated[bool, typer.Option(help="Plain progress lines on stdout, for logs.")]
LoraAlpha = Annotated[
    float | None,
    typer.Option(help="The factors count α/rank times.", rich_help_panel=CHECKPOINT),
]


@contextmanager
def watched(stages: Mapping[str, str], log_steps: bool) -> Iterator[dict[str, display.Callback]]:
    """Callbacks that show how far each stage is, by their words. Training that is interrupted in the block ends the
    command with exit code 130.
    """
    from ddm_rt.train.run import Interrupted

    with display.progress(errors) as bars:
        callbacks = {stage: display.callback(bars, word) for stage, word in stages.items()}
        if log_steps:
            callbacks = {stage: display.log_lines("step" if stage == "train" else stage) for stage in stages}
        try:
            yield callbacks
        except Interrupted as stop:
            errors.print(Text(str(stop)), soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="Run directory; the same command again resumes it.")],
    preset: Annotated[
        str | None,
        typer.Option(help=f"One of: {', '.join(PRESETS)}. By default digits; with --base, checkpoint."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="digits:CLASSES@RATIO, or a folder of images.")] = None,
    indicator: Annotated[
        IndicatorMode | None,
        typer.Option(help="none: plain. labels: DDM as published. codes: ours. probe: ours, with --labels."),
    ] = None,
    indicator_weight: Annotated[
        float | None, typer.Option(help="The paper's α; .05 with labels, .01 with codes.")
    ] = None,
    top_codes: Annotated[int | None, typer.Option(help="How many modes get equal shares.")] = None,
    micro_codes: Annotated[int | None, typer.Option(help="Leaves of the tree of codes.")] = None,
    codes: Annotated[Path | None, typer.Option(help="JSON with codes to use in place of discovery.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="With --indicator probe: CSV (image,label) of 64 to 256 training images."),
    ] = None,
    features: Annotated[
        Path | None,
        typer.Option(help="Encoder to use for code discovery: an ONNX file, or a folder with CLIP's vision model."),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square images the model sees.")] = None,
    channels: Annotated[int | None, typer.Option(help="1: grey, 3: colour.")] = None,
    steps: Steps = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, features and minibatches.")] = None,
    threads: TrainingThreads = None,
    precision: ComputedIn = None,
    grid_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between sheets of samples of prompts and codes, in the run's folder samples."),
    ] = None,
    log_steps: LogSteps = False,
    base: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a Stable Diffusion 1.x, 2.x or XL checkpoint to start from.", rich_help_panel=CHECKPOINT
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Of the checkpoint's weight files, e.g. fp16.", rich_help_panel=CHECKPOINT),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(help="Of images to which metadata.csv gives none.", rich_help_panel=CHECKPOINT),
    ] = None,
    lora_rank: Annotated[
        int | None,
        typer.Option(help="Of the factors beside the UNet's layers; 0: train all of it.", rich_help_panel=CHECKPOINT),
    ] = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: Annotated[
        str | None,
        typer.Option(help="Names of layers, by comma; by default to_q,to_v.", rich_help_panel=CHECKPOINT),
    ] = None,
    train_text_encoder: Annotated[
        bool, typer.Option(help="Factors beside its q_proj and v_proj too.", rich_help_panel=CHECKPOINT)
    ] = False,
    accumulate: Annotated[
        int | None,
        typer.Option(help="Batches whose gradients make one step.", rich_help_panel=CHECKPOINT),
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Compute activations twice: less memory.", rich_help_panel=CHECKPOINT)
    ] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. train.batch_size=32.")
    ] = None,
) -> None:
    """Train a model; killed at any moment, the same command resumes to the same weights.

    With --base a checkpoint's UNet is adapted (LoRA) on images with prompts: a folder whose metadata.csv has the
    columns file_name and prompt, or --prompt for those without.

    Examples:

        ddm-rt train --data digits:3,8@4:1 --out runs/ours

        ddm-rt train --data photos/ --image-size 64 --channels 3 --indicator codes --top-codes 4 --out runs/photos

        ddm-rt train --data digits:3,8@4:1 --indicator labels --indicator-weight .05 --out runs/paper

        ddm-rt train --data photos/ --channels 3 --indicator probe --labels few.csv --out runs/few

        ddm-rt train --base checkpoints/sd15 --data faces/ --prompt "a photo of a face" --out runs/sd

        ddm-rt train --base checkpoints/sdxl --variant fp16 --data faces/ --precision bf16 --gradient-checkpointing
        --lora-targets to_q,to_k,to_v,to_out.0 --train-text-encoder --out runs/xl

        accelerate launch --num_processes 4 -m ddm_rt.cli train --base checkpoints/sd15 --data faces/ --out runs/sd4
    """
    from ddm_rt.presets import resolve

    overrides: dict[str, Any] = dict(arguments.assignment(text) for text in set_ or ())
    named = {
        "data.source": data,
        "data.prompt": prompt,
        "data.image_size": image_size,
        "data.channels": channels,
        "train.indicator": indicator,
        "train.indicator_weight": indicator_weight,
        "train.steps": steps,
        "train.seed": seed,
        "train.threads": threads,
        "train.precision": precision,
        "train.accumulate": accumulate,
        "train.gradient_checkpointing": gradient_checkpointing or None,
        "codes.top_codes": top_codes,
        "codes.micro_codes": micro_codes,
        "codes.source": codes,
        "codes.labels": labels,
        "features.encoder": features,
        "lora.rank": lora_rank,
        "lora.alpha": lora_alpha,
        "lora.targets": lora_targets and tuple(name.strip() for name in lora_targets.split(",")),
        "lora.text_encoder": train_text_encoder or None,
    }
    fields: dict[str, Any] = {}
    if base is not None:
        if data is None and "data.source" not in overrides:
            raise DdmError("--data: missing; with --base it is a folder of images")
        from ddm_rt.train.checkpoint.prepare import fields as fields_of

        fields = fields_of(base, variant)
    elif variant is not None:
        raise DdmError("--variant needs --base, the checkpoint whose files it picks")
    given = {name: value for name, value in named.items() if value is not None}
    config = resolve(preset or ("digits" if base is None else "checkpoint"), fields | overrides | given)
    from ddm_rt.train.distributed import connect
    from ddm_rt.train.run import train as run_training

    with watched(_STAGES, log_steps) as callbacks:
        run_training(config, out, progress=callbacks, grid_every=grid_every)
    if not connect().main:
        return
    display.show_codes(out, console)
    say(f"run: {out}")
