"""`ddm-rt distill`: a student of a run, for few steps and no guidance at run time."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.text import Text

from ddm_rt.cli import arguments, display
from ddm_rt.cli.app import app, errors, say
from ddm_rt.cli.training import Computed

_STAGES = {"reading": "reading", "encoding": "encoding", "train": "distilling"}
_CHECKPOINT = "Checkpoints"


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
    steps: Annotated[Optional[int], typer.Option(help="Optimizer steps.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Of minibatches and noise.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help="CPU threads; part of what decides the weights.")] = None,  # noqa: UP045
    precision: Annotated[Optional[Computed], typer.Option(help="What a step computes in.")] = None,  # noqa: UP045
    grid_every: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Steps between sheets of samples, in the run's folder samples."),
    ] = None,
    log_steps: Annotated[bool, typer.Option(help="Plain progress lines on stdout, for logs.")] = False,
    lora_rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Of the student's factors beside the teacher's layers.", rich_help_panel=_CHECKPOINT),
    ] = None,
    lora_alpha: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="The factors count α/rank times.", rich_help_panel=_CHECKPOINT),
    ] = None,
    lora_targets: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Names of layers, by comma; by default all linear ones.", rich_help_panel=_CHECKPOINT),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. train.batch_size=8.")
    ] = None,
) -> None:
    """Distil a run into a student: a few steps, guidance folded in, the teacher's codes.

    The student is a run too: `export`, `calibrate` and `evaluate` take it as any other. It learns from the teacher's
    training images, which must still be where they were. Of a run with a checkpoint the student is low-rank factors
    beside the merged teacher.

    Examples:

        ddm-rt distill runs/ours --out runs/ours-4

        ddm-rt distill runs/ours --num-steps 2 --steps 1200 --out runs/ours-2

        ddm-rt distill runs/sd --guidance-scale 7.5 --lora-rank 64 --precision bf16 --out runs/sd-4

        ddm-rt export runs/ours-4 --tables ddim:4 --out bundles/ours-4
    """
    from ddm_rt.train.distill import distill as run_distillation
    from ddm_rt.train.processes import connect
    from ddm_rt.train.run import Interrupted

    named = {
        "distill.phases": num_steps,
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
    with display.progress(errors) as bars:
        callbacks = {stage: display.callback(bars, word) for stage, word in _STAGES.items()}
        if log_steps:
            callbacks = {stage: display.log_lines("step" if stage == "train" else stage) for stage in _STAGES}
        try:
            run_distillation(run, out, fields, progress=callbacks, grid_every=grid_every)
        except Interrupted as stop:
            errors.print(Text(str(stop)), soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None
    if connect().main:
        say(f"run: {out}")
