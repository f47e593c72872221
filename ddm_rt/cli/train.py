"""`ddm-rt train`, `distill` and `distill-decoder`: a model from images or from a Stable Diffusion checkpoint, a student
of it, and a small decoder.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.text import Text
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import errors, makes_models, say
from ddm_rt.config import IndicatorMode
from ddm_rt.presets import PRESETS
from ddm_rt.progress import OnFigures

_TRAINING = {"reading": "reading", "features": "features", "encoding": "encoding", "train": "training"}
_DISTILLING = {"reading": "reading", "encoding": "encoding", "paths": "the teacher's paths", "train": "distilling"}

Steps = Annotated[int | None, Option(help="Number of optimizer steps.")]
Seed = Annotated[int | None, Option(help="Seed of all that training draws. The same seed gives the same weights.")]
TrainingThreads = Annotated[int | None, Option(help="CPU threads. Another number gives slightly other weights.")]
ComputedIn = Annotated[
    Literal["fp32", "fp16", "bf16"] | None, Option(help="Precision of a step. By default bf16 on a GPU, else fp32.")
]
GridEvery = Annotated[int | None, Option(min=1, help="Steps between sheets of samples, in the run's folder samples.")]
LogSteps = Annotated[bool, Option(help="Print plain lines of progress on stdout, for a log.")]
Set = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="FIELD=VALUE",
        help="Any field of the configuration, e.g. train.batch_size=32. Repeatable.",
    ),
]
LoraAlpha = Annotated[float | None, Option(help="α of the factors. They count α/rank times.")]


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


@makes_models(
    Codes="top_codes micro_codes codes labels features indicator_weight",
    Checkpoints="base variant prompt lora_rank lora_alpha lora_targets train_text_encoder accumulate "
    "gradient_checkpointing",
    Progress="grid_every log_steps",
)
def train(
    out: Annotated[Path, Option(help="Directory of the run. The same command resumes it where it stopped.")],
    data: Annotated[str | None, Option(help="Training images: a folder, or digits:CLASSES@RATIO.")] = None,
    indicator: Annotated[
        IndicatorMode | None,
        Option(
            help="What tells the model about modes. codes: codes found without labels (ours). probe: codes from the "
            "few labels of --labels. labels: labels for all images (DDM as published). none: nothing."
        ),
    ] = None,
    preset: Annotated[
        str | None, Option(help=f"Set of defaults: {', '.join(PRESETS)}. By default digits; with --base, checkpoint.")
    ] = None,
    image_size: Annotated[int | None, Option(help="Width and height of the images that the model sees.")] = None,
    channels: Annotated[int | None, Option(help="1 for grey images, 3 for colour.")] = None,
    steps: Steps = None,
    seed: Seed = None,
    top_codes: Annotated[int | None, Option(help="Number of modes that get equal shares.")] = None,
    micro_codes: Annotated[int | None, Option(help="Number of codes in all. They are the leaves of the tree.")] = None,
    labels: Annotated[
        Path | None, Option(help="CSV file (image,label) for --indicator probe: 64 to 256 images.")
    ] = None,
    codes: Annotated[Path | None, Option(help="JSON file with codes, or factors.json of ddm-rt discover.")] = None,
    features: Annotated[
        Path | None, Option(help="Encoder to find codes with: ONNX file, or folder with CLIP's.")
    ] = None,
    indicator_weight: Annotated[
        float | None, Option(help="Weight α of the indicator: .05 with labels, .01 with codes.")
    ] = None,
    base: Annotated[
        Path | None, Option(help="Folder of a Stable Diffusion 1.x, 2.x or XL checkpoint to start from.")
    ] = None,
    variant: Annotated[str | None, Option(help="Variant of the checkpoint's weight files, e.g. fp16.")] = None,
    prompt: Annotated[str | None, Option(help="Prompt of the images to which metadata.csv gives none.")] = None,
    lora_rank: Annotated[int | None, Option(help="Rank of the UNet's low-rank factors. 0 trains all of it.")] = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: Annotated[str | None, Option(help="Layers with factors, with commas. By default to_q,to_v.")] = None,
    train_text_encoder: Annotated[bool, Option(help="Train factors of the text encoder, too.")] = False,
    accumulate: Annotated[int | None, Option(help="Number of batches whose gradients make one step.")] = None,
    gradient_checkpointing: Annotated[bool, Option(help="Compute activations twice. This takes less memory.")] = False,
    precision: ComputedIn = None,
    threads: TrainingThreads = None,
    grid_every: GridEvery = None,
    log_steps: LogSteps = False,
    set_: Set = None,
) -> None:
    """Train a model on images. A run that was killed goes on with the same command, to the same weights.

    With --base, training adapts the UNet of a checkpoint (LoRA). Its images have prompts: the folder holds a
    metadata.csv with the columns file_name and prompt. --prompt gives one to the images that have none there.

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


@makes_models(
    Options="num_steps guidance_scale indicator_guidance_scale",
    Checkpoints="lora_rank lora_alpha lora_targets",
    Progress="grid_every log_steps",
)
def distill(
    run: Annotated[Path, Argument(help="Teacher: a finished run of ddm-rt train.")],
    out: Annotated[Path, Option(help="Directory of the student's run. The same command resumes it.")],
    num_steps: Annotated[
        int | None,
        Option(min=1, help="Steps that the student needs: 1, 2, 4, 5, 8, 10. By default 2, or 4 if not adversarial."),
    ] = None,
    steps: Steps = None,
    seed: Seed = None,
    paths: Annotated[
        int | None,
        Option(
            min=0,
            help="Images of the teacher to learn from. 0 takes noised training images, as is usual with a checkpoint.",
        ),
    ] = None,
    guidance_scale: Annotated[
        float | None, Option(min=0, help="Guidance on the prompt to learn. By default the teacher's.")
    ] = None,
    indicator_guidance_scale: Annotated[
        float | None, Option(min=0, help="Guidance on the code to learn. By default the teacher's.")
    ] = None,
    lora_rank: Annotated[int | None, Option(min=1, help="Rank of the student's factors beside the layers.")] = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: Annotated[
        str | None, Option(help="Layers with factors, with commas. By default all linear ones.")
    ] = None,
    precision: ComputedIn = None,
    threads: TrainingThreads = None,
    grid_every: GridEvery = None,
    log_steps: LogSteps = False,
    set_: Set = None,
) -> None:
    """Distil a run into a student, a model that needs a few steps. It has the teacher's codes and learns its guidance.

    A student is a run, too: export, calibrate and evaluate take it like any other. A model of pixels learns against a
    discriminator that knows the teacher's images. With a checkpoint, the student is a set of low-rank factors beside
    the merged teacher, and learns from noised training images. Training images must still be where they were.

    Examples:

        ddm-rt distill runs/ours --out runs/ours-2
        ddm-rt distill runs/ours --num-steps 1 --out runs/ours-1
        ddm-rt distill runs/ours --num-steps 4 --set distill.adversarial=false --out runs/ours-by-paths
        ddm-rt distill runs/sd --guidance-scale 7.5 --lora-rank 64 --precision bf16 --out runs/sd-4
        ddm-rt export runs/ours-2 --out bundles/ours-2
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


@makes_models(Options="data steps batch_size crop", Network="width blocks", Progress="log_steps")
def distill_decoder(
    run: Annotated[Path, Argument(help="A run on a Stable Diffusion checkpoint, trained or imported.")],
    out: Annotated[Path, Option(help="Folder of the decoder. The same command resumes it.")],
    data: Annotated[str | None, Option(help="Images to learn from. By default those of the run.")] = None,
    steps: Annotated[int, Option(min=1, help="Number of optimizer steps.")] = 2000,
    batch_size: Annotated[int, Option(min=1, help="Crops of images in a step.")] = 4,
    crop: Annotated[int, Option(min=8, help="Pixels a side of a crop.")] = 128,
    width: Annotated[int, Option(min=8, help="Channels of the decoder.")] = 64,
    blocks: Annotated[int, Option(min=1, help="Blocks of each resolution.")] = 3,
    seed: Annotated[int, Option(help="Seed of all that training draws.")] = 0,
    threads: Annotated[int, Option(min=1, help="CPU threads.")] = 1,
    log_steps: LogSteps = False,
) -> None:
    """Distil a small decoder that takes the place of a VAE's. Its images are near the VAE's, and cost much less.

    It is diffusers' AutoencoderTiny. Each step draws crops of images, and the decoder learns what the VAE makes of
    their latents. At the end the command says how far it is from the VAE on images that it never saw.

    Examples:

        ddm-rt distill-decoder runs/sd --out decoders/sd
        ddm-rt distill-decoder runs/imported --data photos/ --steps 5000 --out decoders/sd
        ddm-rt export runs/sd --decoder decoders/sd --out bundles/sd
    """
    from ddm_rt.train.distill.decoder import DecoderConfig
    from ddm_rt.train.distill.decoder import distill_decoder as run_distillation

    config = DecoderConfig(
        steps=steps, batch_size=batch_size, crop=crop, width=width, blocks=blocks, seed=seed, threads=threads
    )
    with _watched({"train": "distilling"}, log_steps) as progress:
        found = run_distillation(run, out, config, data, progress["train"])
    say(f"decoder: {out}")
    say(
        f"from the VAE on {found.held_out} images it never saw: {found.mean_abs_grey_levels:.1f} grey levels "
        f"in the mean, PSNR {found.psnr_db:.1f} dB"
    )
