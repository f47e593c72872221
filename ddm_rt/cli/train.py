"""`ddm-rt train` and `distill`: a model from images or from a Stable Diffusion checkpoint, and a student of it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import app, errors, say
from ddm_rt.config import IndicatorMode
from ddm_rt.presets import PRESETS
from ddm_rt.progress import OnFigures

_TRAINING = {"reading": "reading", "features": "features", "encoding": "encoding", "train": "training"}
_DISTILLING = {"reading": "reading", "encoding": "encoding", "paths": "the teacher's paths", "train": "distilling"}
_checkpoint = partial(Option, rich_help_panel="Checkpoints")  # an option of models that have a checkpoint

Steps = Annotated[int | None, Option(help="Optimizer steps.")]
TrainingThreads = Annotated[int | None, Option(help="CPU threads; part of what decides the weights.")]
ComputedIn = Annotated[Literal["fp32", "fp16", "bf16"] | None, Option(help="What a step computes in.")]
LogSteps = Annotated[bool, Option(help="Plain progress lines on stdout, for logs.")]
LoraAlpha = Annotated[float | None, _checkpoint(help="The factors count α/rank times.")]


@contextmanager
def _watched(stages: Mapping[str, str], log_steps: bool) -> Iterator[dict[str, OnFigures]]:
    """Callbacks that show how far each stage is, by their words. Training that is interrupted in the block ends the
    command with exit code 130.
    """
    from ddm_rt.train.run import Interrupted

    with display.progress(errors) as bars:
        try:
            if log_steps:
                yield {stage: display.log_lines("step" if stage == "train" else stage) for stage in stages}
            else:
                yield {stage: display.step_callback(bars, word) for stage, word in stages.items()}
        except Interrupted as stop:
            errors.print(Text(str(stop)), soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None


@app.command()
def train(
    out: Annotated[Path, Option("--out", help="Run directory; the same command again resumes it.")],
    preset: Annotated[
        str | None, Option(help=f"One of: {', '.join(PRESETS)}. By default digits; with --base, checkpoint.")
    ] = None,
    data: Annotated[str | None, Option(help="digits:CLASSES@RATIO, or a folder of images.")] = None,
    indicator: Annotated[
        IndicatorMode | None,
        Option(help="none: plain. labels: DDM as published. codes: ours. probe: ours, with --labels."),
    ] = None,
    indicator_weight: Annotated[float | None, Option(help="The paper's α; .05 with labels, .01 with codes.")] = None,
    top_codes: Annotated[int | None, Option(help="How many modes get equal shares.")] = None,
    micro_codes: Annotated[int | None, Option(help="Leaves of the tree of codes.")] = None,
    codes: Annotated[Path | None, Option(help="JSON with codes to use in place of discovery.")] = None,
    labels: Annotated[
        Path | None, Option(help="With --indicator probe: CSV (image,label) of 64 to 256 training images.")
    ] = None,
    features: Annotated[
        Path | None,
        Option(help="Encoder to use for code discovery: an ONNX file, or a folder with CLIP's vision model."),
    ] = None,
    image_size: Annotated[int | None, Option(help="Side of the square images the model sees.")] = None,
    channels: Annotated[int | None, Option(help="1: grey, 3: colour.")] = None,
    steps: Steps = None,
    seed: Annotated[int | None, Option(help="Of weights, features and minibatches.")] = None,
    threads: TrainingThreads = None,
    precision: ComputedIn = None,
    grid_every: Annotated[
        int | None,
        Option(min=1, help="Steps between sheets of samples of prompts and codes, in the run's folder samples."),
    ] = None,
    log_steps: LogSteps = False,
    base: Annotated[
        Path | None, _checkpoint(help="Folder of a Stable Diffusion 1.x, 2.x or XL checkpoint to start from.")
    ] = None,
    variant: Annotated[str | None, _checkpoint(help="Of the checkpoint's weight files, e.g. fp16.")] = None,
    prompt: Annotated[str | None, _checkpoint(help="Of images to which metadata.csv gives none.")] = None,
    lora_rank: Annotated[
        int | None, _checkpoint(help="Of the factors beside the UNet's layers; 0: train all of it.")
    ] = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: Annotated[str | None, _checkpoint(help="Names of layers, by comma; by default to_q,to_v.")] = None,
    train_text_encoder: Annotated[bool, _checkpoint(help="Factors beside its q_proj and v_proj too.")] = False,
    accumulate: Annotated[int | None, _checkpoint(help="Batches whose gradients make one step.")] = None,
    gradient_checkpointing: Annotated[bool, _checkpoint(help="Compute activations twice: less memory.")] = False,
    set_: Annotated[
        list[str] | None, Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. train.batch_size=32.")
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
    from ddm_rt.train.distributed import connect
    from ddm_rt.workflows.train import train as run_training

    fields = options.assignments(set_) | options.given(
        {
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
            "lora.targets": options.names(lora_targets),
            "lora.text_encoder": train_text_encoder or None,
        }
    )
    with _watched(_TRAINING, log_steps) as progress:
        run_training(out, fields, preset=preset, base=base, variant=variant, progress=progress, grid_every=grid_every)
    if connect().main:
        display.show_codes(out)
        say(f"run: {out}")


@app.command()
def distill(
    run: Annotated[Path, Argument(help="A finished run of `ddm-rt train`: the teacher.")],
    out: Annotated[Path, Option("--out", help="The student's run directory; the same command resumes it.")],
    num_steps: Annotated[
        int | None, Option(min=1, help="Steps that the student is made for: 4 by default; also 1, 2, 5, 8, 10.")
    ] = None,
    guidance_scale: Annotated[
        float | None, Option(min=0, help="Of the prompt, folded in; by default what the teacher samples with.")
    ] = None,
    indicator_guidance_scale: Annotated[
        float | None, Option(min=0, help="Of the code, folded in; by default what the teacher samples with.")
    ] = None,
    paths: Annotated[
        int | None,
        Option(min=0, help="Of the teacher, to learn from; 0: from noised images, as by default beside a checkpoint."),
    ] = None,
    steps: Steps = None,
    seed: Annotated[int | None, Option(help="Of minibatches and noise.")] = None,
    threads: TrainingThreads = None,
    precision: ComputedIn = None,
    grid_every: Annotated[
        int | None, Option(min=1, help="Steps between sheets of samples, in the run's folder samples.")
    ] = None,
    log_steps: LogSteps = False,
    lora_rank: Annotated[
        int | None, _checkpoint(min=1, help="Of the student's factors beside the teacher's layers.")
    ] = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: Annotated[
        str | None, _checkpoint(help="Names of layers, by comma; by default all linear ones.")
    ] = None,
    set_: Annotated[
        list[str] | None, Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. train.batch_size=8.")
    ] = None,
) -> None:
    """Distil a run into a student: a few steps, guidance folded in, the teacher's codes.

    The student is a run too: `export`, `calibrate` and `evaluate` take it as any other. It learns on the teacher's own
    paths, or on noised training images; these must still be where they were. Of a run with a checkpoint the student is
    low-rank factors beside the merged teacher.

    Examples:

        ddm-rt distill runs/ours --out runs/ours-4

        ddm-rt distill runs/ours --num-steps 2 --paths 2000 --steps 2000 --out runs/ours-2

        ddm-rt distill runs/sd --guidance-scale 7.5 --lora-rank 64 --precision bf16 --out runs/sd-4

        ddm-rt export runs/ours-4 --out bundles/ours-4
    """
    from ddm_rt.train.distill.run import distill as run_distillation
    from ddm_rt.train.distributed import connect

    fields = options.assignments(set_) | options.given(
        {
            "distill.phases": num_steps,
            "distill.paths": paths,
            "distill.guidance_scale": guidance_scale,
            "distill.indicator_guidance_scale": indicator_guidance_scale,
            "distill.lora.rank": lora_rank,
            "distill.lora.alpha": lora_alpha,
            "distill.lora.targets": options.names(lora_targets),
            "train.steps": steps,
            "train.seed": seed,
            "train.threads": threads,
            "train.precision": precision,
        }
    )
    with _watched(_DISTILLING, log_steps) as progress:
        run_distillation(run, out, fields, progress=progress, grid_every=grid_every)
    if connect().main:
        say(f"run: {out}")
