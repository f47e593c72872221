"""Commands that make things of what is there: bundles, plans, judges. Each imports its rooms on use."""

from pathlib import Path
from typing import Annotated

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import app, errors, say
from ddm_rt.config import Precision
from ddm_rt.errors import DdmError


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A finished run of `ddm-rt train`; or a bundle, to be converted.")],
    out: Annotated[Path | None, typer.Option("--out", help="Bundle to write; must not exist, or be empty.")] = None,
    diffusers: Annotated[
        Path | None,
        typer.Option(help="In place of --out: a diffusers pipeline folder to write, from a run with a checkpoint."),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="What the graphs compute in, or the folder's weights are stored in.")
    ] = Precision.FP32,
    plugin: Annotated[bool, typer.Option(help="Add denoiser.plugin.onnx, for --backend tensorrt.")] = False,
    decoder: Annotated[
        Path | None,
        typer.Option(help="Folder with a small decoder (diffusers' AutoencoderTiny) to use in place of the VAE's."),
    ] = None,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="int8, fp8: images, balanced by quota, that set the ranges.")
    ] = 64,
) -> None:
    """Make a bundle from a run: its ONNX graphs, checked against torch before anything is written.

    Examples:

        ddm-rt export runs/ours --out bundles/ours

        ddm-rt export runs/ours --precision fp16 --plugin --out bundles/ours-fp16

        ddm-rt export digits --precision int8 --out bundles/digits-int8

        ddm-rt export runs/sd --precision fp16 --decoder taesd/ --out bundles/sd

        ddm-rt export runs/sd --precision fp16 --diffusers pipelines/sd
    """
    if diffusers is not None:
        given = {
            "--out": out is not None,
            "--plugin": plugin,
            "--decoder": decoder is not None,
        }
        if wrong := [name for name, there in given.items() if there]:
            raise DdmError(f"{wrong[0]}: not with --diffusers, which writes no bundle")
        from ddm_rt.export.diffusers import export_diffusers

        export_diffusers(Path(source), diffusers, precision)
        say(f"diffusers pipeline: {diffusers}")
        return
    if out is None:
        raise DdmError("--out: missing; name a bundle directory to write, or with --diffusers a pipeline folder")
    from ddm_rt.workflows.export import export as export_source

    with display.progress(errors) as bars:
        update = display.callback(bars, "exporting")
        bundle = export_source(
            source,
            out,
            precision,
            plugin=plugin,
            decoder=decoder,
            calibration_images=calibration_images,
            progress=lambda done, total, part: update(done, total, {}),
        )
    say(f"bundle: {out}\nid: {bundle.bundle_id}\nprecision: {bundle.config.precision}")
