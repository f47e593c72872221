"""`ddm-rt distill`: a student of a run, for few steps and no guidance at run time."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from ddm_rt.cli import arguments
from ddm_rt.cli.app import app, say
from ddm_rt.cli.training import CHECKPOINT, ComputedIn, LogSteps, LoraAlpha, Steps, TrainingThreads, watched

_STAGES = {"reading": "reading", "encoding": "encoding", "paths": "the teacher's paths", "train": "distilling"}


@app.command()
def distill(
    run: Annotated[Path, typer.Argument(help="A finished run of `ddm-rt train`: the teacher.")],
    out: Annotated[Path, typer.Option("--out", help="The student's run directory; the same command resumes it.")],
    num_steps: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Steps that the student is made for: 4 by default; also 1, 2, 5, 8, 10."),
    ] = None,
    guidance_scale: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Of the prompt, folded in; by default what the teacher samples with."),
    ] = None,
    indicator_guidance_scale: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0, help="Of the code, folded in; by default what the teacher samples with."),
    ] = None,
    paths: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            min=0,
            help="Of the teacher, to learn from; 0: from noised images, as by default beside a checkpoint.",
        ),
    ] = None,
    steps: Steps = None,
    seed: Annotated[Optional[int], typer.Option(help="Of minibatches and noise.")] = None,  # noqa: UP045
    threads: TrainingThreads = None,
    precision: ComputedIn = None,
    grid_every: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Steps between sheets of samples, in the run's folder samples."),
    ] = None,
    log_steps: LogSteps = False,
    lora_rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Of the student's factors beside the teacher's layers.", rich_help_panel=CHECKPOINT),
    ] = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names of layers, by comma; by default all linear ones.", rich_help_panel=CHECKPOINT),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. train.batch_size=8.")
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

    named = {
        "distill.phases": num_steps,
        "distill.paths": paths,
        "distill.guidance_scale": guidance_scale,
        "distill.indicator_guidance_scale": indicator_guidance_scale,
        "distill.lora.rank": lora_rank,
        "distill.lora.alpha": lora_alpha,
        "distill.lora.targets": lora_targets and tuple(name.strip() for name in lora_targets.split(",")),
        "train.steps": steps,
        "train.seed": seed,
        "train.threads": threads,
        "train.precision": precision,
    }
    fields: dict[str, Any] = dict(arguments.assignment(text) for text in set_ or ())
    fields |= {name: value for name, value in named.items() if value is not None}
    with watched(_STAGES, log_steps) as callbacks:
        run_distillation(run, out, fields, progress=callbacks, grid_every=grid_every)
    if connect().main:
        say(f"run: {out}")
