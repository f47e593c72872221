"""`ddm-rt import`: a Stable Diffusion checkpoint, and an adapter for it, as a run."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import Out, app, errors, say

_SHOWN = 10  # of the layers that an adapter names and the checkpoint hasn't got


class Stored(StrEnum):
    """What the imported weights are written in."""

    FP32 = "fp32"
    FP16 = "fp16"


@app.command("import")
def import_checkpoint(
    base: Annotated[Path, typer.Option(help="Folder of a Stable Diffusion 1.x, 2.x or XL checkpoint (diffusers).")],
    out: Out,
    adapter: Annotated[
        Path | None,
        typer.Option(help="LoRA to merge: a PEFT folder (unet/, text_encoder/), or one .safetensors or .bin file."),
    ] = None,
    variant: Annotated[str | None, typer.Option(help="Of the checkpoint's weight files, e.g. fp16.")] = None,
    dtype: Annotated[Stored, typer.Option(help="What the run's weights are written in.")] = Stored.FP32,
) -> None:
    """Make a run of a checkpoint, with or without a published adapter, for `ddm-rt export`. It has no codes.

    Examples:

        ddm-rt import --base checkpoints/sd15 --out runs/plain

        ddm-rt import --base checkpoints/sd15 --adapter ddm-adapter/ --out runs/ddm

        ddm-rt import --base checkpoints/sdxl --variant fp16 --dtype fp16 --adapter lora.safetensors --out runs/xl
    """
    import torch

    from ddm_rt.model.checkpoint.importing import import_run

    with display.progress(errors) as bars:
        update = display.callback(bars, "importing")
        report = import_run(
            base,
            out,
            adapter=adapter,
            variant=variant,
            dtype={Stored.FP32: torch.float32, Stored.FP16: torch.float16}[dtype],
            progress=lambda done, total, stage: update(done, total, {}),
        )
    say(f"run: {out}")
    if report.stands_for is not None:
        say(f"sampler: {report.sampler}, the nearest to the checkpoint's {report.stands_for}; --sampler picks another")
    if report.adapter is not None:
        say(f"merged layers: {len(report.adapter.merged)}")
        if left := report.adapter.unmatched:
            more = f", and {len(left) - _SHOWN} more (provenance.json)" if len(left) > _SHOWN else ""
            say(f"not in the checkpoint, left out: {', '.join(left[:_SHOWN])}{more}")
