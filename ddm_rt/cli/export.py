"""Commands that lead to a bundle: `ddm-rt import` (a checkpoint as a run), `export` and `upgrade`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import app, say
from ddm_rt.config import Precision
from ddm_rt.errors import DdmError

_SHOWN = 10  # of the layers that an adapter names and the checkpoint hasn't got


@app.command("import")
def import_checkpoint(
    base: Annotated[Path, Option(help="Folder of a Stable Diffusion 1.x, 2.x or XL checkpoint (diffusers).")],
    out: options.Out,
    adapter: Annotated[
        Path | None,
        Option(help="LoRA to merge: a PEFT folder (unet/, text_encoder/), or one .safetensors or .bin file."),
    ] = None,
    variant: Annotated[str | None, Option(help="Of the checkpoint's weight files, e.g. fp16.")] = None,
    dtype: Annotated[Literal["fp32", "fp16"], Option(help="What the run's weights are written in.")] = "fp32",
) -> None:
    """Make a run of a checkpoint, with or without a published adapter, for `ddm-rt export`. It has no codes.

    Examples:

        ddm-rt import --base checkpoints/sd15 --out runs/plain

        ddm-rt import --base checkpoints/sd15 --adapter ddm-adapter/ --out runs/ddm

        ddm-rt import --base checkpoints/sdxl --variant fp16 --dtype fp16 --adapter lora.safetensors --out runs/xl
    """
    import torch

    from ddm_rt.model.checkpoint.importing import import_run

    stored = {"fp32": torch.float32, "fp16": torch.float16}[dtype]
    with display.bar("importing") as update:
        report = import_run(base, out, adapter=adapter, variant=variant, dtype=stored, progress=update)
    say(f"run: {out}")
    if report.stands_for is not None:
        say(f"sampler: {report.sampler}, the nearest to the checkpoint's {report.stands_for}; --sampler picks another")
    if report.adapter is not None:
        say(f"merged layers: {len(report.adapter.merged)}")
        if left := report.adapter.unmatched:
            more = f", and {len(left) - _SHOWN} more (provenance.json)" if len(left) > _SHOWN else ""
            say(f"not in the checkpoint, left out: {', '.join(left[:_SHOWN])}{more}")


@app.command()
def export(
    source: Annotated[str, Argument(help="A finished run of `ddm-rt train`; or a bundle, to be converted.")],
    out: Annotated[Path | None, Option("--out", help="Bundle to write; must not exist, or be empty.")] = None,
    diffusers: Annotated[
        Path | None,
        Option(help="In place of --out: a diffusers pipeline folder to write, from a run with a checkpoint."),
    ] = None,
    precision: Annotated[
        Precision, Option(help="What the graphs compute in, or the folder's weights are stored in.")
    ] = Precision.FP32,
    plugin: Annotated[bool, Option(help="Add denoiser.plugin.onnx, for --backend tensorrt.")] = False,
    decoder: Annotated[
        Path | None,
        Option(help="Folder with a small decoder (diffusers' AutoencoderTiny) to use in place of the VAE's."),
    ] = None,
    calibration_images: Annotated[
        int, Option(min=1, help="int8, fp8: images, balanced by quota, that set the ranges.")
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
        given = {"--out": out, "--plugin": plugin, "--decoder": decoder}
        options.refuse(given, "not with --diffusers, which writes no bundle")
        from ddm_rt.export.diffusers import export_diffusers

        export_diffusers(Path(source), diffusers, precision)
        say(f"diffusers pipeline: {diffusers}")
        return
    if out is None:
        raise DdmError("--out: missing; name a bundle directory to write, or with --diffusers a pipeline folder")
    from ddm_rt.workflows.export import export as export_bundle

    with display.bar("exporting") as update:
        bundle = export_bundle(
            source,
            out,
            precision,
            plugin=plugin,
            decoder=decoder,
            calibration_images=calibration_images,
            progress=update,
        )
    say(f"bundle: {out}\nid: {bundle.bundle_id}\nprecision: {bundle.config.precision}")


@app.command()
def upgrade(
    bundle: Annotated[str, Argument(help="A bundle directory; to move ledgers alone, also the shipped one: digits.")],
    out: Annotated[
        Path | None,
        Option("--out", help="Write the upgraded bundle here. Without it, the bundle is upgraded where it is."),
    ] = None,
    ledger: Annotated[
        list[Path] | None, Option("--ledger", help="A ledger to move to the new bundle id; may be repeated.")
    ] = None,
) -> None:
    """Bring a bundle of an earlier format to the present one, with its calibrations and recorded gates.

    Its graphs stay as they are and images stay the same. Its id changes; the new bundle records the old id, so that old
    manifests replay. A ledger counts for one id, so each must be moved, once; first stop what draws from it with the
    old bundle. It is safe to run the command again: what is done is left alone.

    Examples:

        ddm-rt upgrade bundles/ours

        ddm-rt upgrade bundles/ours --out bundles/ours-2 --ledger counts.ledger

        ddm-rt upgrade digits --ledger counts.ledger
    """
    from ddm_rt.workflows.upgrade import upgrade as upgrade_bundle

    done = upgrade_bundle(bundle, out, ledger or ())
    made = done.bundle
    say(f"bundle: {made.path}{' (it had this format already)' if done.was_current else ''}\nid: {made.bundle_id}")
    if made.index.former_ids:
        say(f"made from: {', '.join(made.index.former_ids)}")
    for path, moved in zip(ledger or (), done.moved, strict=True):
        say(f"ledger: {path}: " + (f"{moved} stream{'s' * (moved != 1)} moved" if moved else "nothing to move"))
