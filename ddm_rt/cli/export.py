"""Commands that lead to a bundle: `ddm-rt import` (a checkpoint as a run), `export` and `upgrade`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import makes_models, say
from ddm_rt.config import Precision
from ddm_rt.errors import DdmError

_SHOWN = 10  # of the layers that an adapter names and the checkpoint hasn't got


@makes_models("import")
def import_checkpoint(
    base: Annotated[Path, Option(help="Checkpoint folder (diffusers): Stable Diffusion 1.x, 2.x or XL.")],
    out: options.Out,
    adapter: Annotated[
        Path | None, Option(help="LoRA to merge: a PEFT folder (unet/, text_encoder/), or a .safetensors or .bin file.")
    ] = None,
    variant: Annotated[str | None, Option(help="Variant of the checkpoint's weight files, e.g. fp16.")] = None,
    dtype: Annotated[Literal["fp32", "fp16"], Option(help="Precision that the run's weights are stored in.")] = "fp32",
) -> None:
    """Make a run from a checkpoint, with or without a published adapter. The run has no codes; export takes it.

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


@makes_models(Options="precision", Other_options="plugin precompute_kv decoder decoder_tile calibration_images")
def export(
    source: Annotated[str, Argument(help="A finished run of ddm-rt train, or a bundle to convert.")],
    out: Annotated[Path | None, Option(help="Bundle to write. The directory must not exist, or be empty.")] = None,
    diffusers: Annotated[Path | None, Option(help="Folder for a diffusers pipeline, in place of a bundle.")] = None,
    precision: Annotated[Precision, Option(help="Precision of the graphs or the pipeline's weights.")] = Precision.FP32,
    plugin: Annotated[bool, Option(help="Add denoiser.plugin.onnx, a graph for --backend tensorrt.")] = False,
    precompute_kv: Annotated[
        bool, Option(help="Let the conditioner make attention's keys and values, once per prompt and code.")
    ] = False,
    decoder: Annotated[Path | None, Option(help="Folder with a small decoder to use (AutoencoderTiny).")] = None,
    decoder_tile: Annotated[
        int | None,
        Option(help="Let the decoder work in tiles of at most so many pixels a side. For large images on a CPU."),
    ] = None,
    calibration_images: Annotated[
        int | None,
        Option(min=1, help="Balanced images that set int8's and fp8's ranges: 64, or 4 on a Stable Diffusion model."),
    ] = None,
) -> None:
    """Make a bundle from a run. Its ONNX graphs are checked against torch before anything is written.

    Examples:

        ddm-rt export runs/ours --out bundles/ours
        ddm-rt export runs/ours --precision fp16 --plugin --out bundles/ours-fp16
        ddm-rt export digits --precision int8 --out bundles/digits-int8
        ddm-rt export bundles/sd --precision int8-weights --decoder-tile 320 --out bundles/sd-small
        ddm-rt export runs/sd --precision fp16 --decoder taesd/ --out bundles/sd
        ddm-rt export runs/sd --precision fp16 --precompute-kv --out bundles/sd-kv
        ddm-rt export runs/sd --precision fp16 --diffusers pipelines/sd
    """
    if diffusers is not None:
        given = {
            "--out": out,
            "--plugin": plugin,
            "--precompute-kv": precompute_kv,
            "--decoder": decoder,
            "--decoder-tile": decoder_tile,
        }
        options.refuse(given, "this option can't go with --diffusers, which writes no bundle")
        from ddm_rt.export.diffusers import export_diffusers

        export_diffusers(Path(source), diffusers, precision)
        say(f"diffusers pipeline: {diffusers}")
        return
    if out is None:
        raise DdmError("--out: name a bundle directory to write, or a pipeline folder with --diffusers")
    from ddm_rt.workflows.export import export as export_bundle

    if calibration_images is not None and precision not in (Precision.INT8, Precision.FP8):
        raise DdmError(f"--calibration-images: {precision} isn't calibrated; int8 and fp8 are")
    with display.bar("exporting") as update:
        bundle = export_bundle(
            source,
            out,
            precision,
            plugin=plugin,
            precompute_kv=precompute_kv,
            decoder=decoder,
            decoder_tile=decoder_tile,
            calibration_images=calibration_images,
            progress=update,
        )
    say(f"bundle: {out}\nid: {bundle.bundle_id}\nprecision: {bundle.config.precision}")


@makes_models()
def upgrade(
    bundle: Annotated[str, Argument(help="A bundle directory. Of digits, only ledgers are moved.")],
    out: Annotated[Path | None, Option(help="Directory for the new bundle. By default it stays in place.")] = None,
    ledger: Annotated[list[Path] | None, Option(help="Ledger to move to the bundle's new id. May be repeated.")] = None,
) -> None:
    """Bring a bundle of an earlier format to the present one. Its calibrations and recorded gates come along.

    The graphs don't change, and neither do images. The id does: the new bundle records the old one, and old manifests
    still replay. A ledger counts for one id, so you must move each ledger once. First stop what draws from it with
    the old bundle. You can run the command again: what is done is left alone.

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
