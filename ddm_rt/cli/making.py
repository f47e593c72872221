"""Commands that make things of what is there: bundles, plans, judges. Each imports its rooms on use."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import DeviceName, app, errors, say
from ddm_rt.config import Backend, Precision
from ddm_rt.errors import DdmError


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A finished run of `ddm-rt train`; or a bundle, to be converted.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Bundle to write; must not exist, or be empty.")] = None,  # noqa: UP045
    diffusers: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="In place of --out: a diffusers pipeline folder to write, from a run with a checkpoint."),
    ] = None,
    precision: Annotated[
        Precision, typer.Option(help="What the graphs compute in, or the folder's weights are stored in.")
    ] = Precision.FP32,
    plugin: Annotated[bool, typer.Option(help="Add denoiser.plugin.onnx, for --backend tensorrt.")] = False,
    decoder: Annotated[
        Optional[Path],  # noqa: UP045
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
        given = {"--out": out is not None, "--plugin": plugin, "--decoder": decoder is not None}
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


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(help="A bundle directory, or with --out the shipped one: digits.")],
    backend: Annotated[str, typer.Option(help="torch, tensorrt or tensorrt-rtx.")],
    precision: Annotated[
        Optional[Precision],  # noqa: UP045
        typer.Option(help="torch: what to compute an fp32 bundle in. The others take the bundle's own."),
    ] = None,
    device: DeviceName = None,
    sm: Annotated[Optional[str], typer.Option(help="Compute capabilities, by comma; by default this GPU's.")] = None,  # noqa: UP045
    batch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Batch sizes MIN,OPT,MAX; by default 1,8,32. torch: every one by comma; by default 1,2,8,16."
        ),
    ] = None,
    size: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Pixels a side, MIN,OPT,MAX; by default as trained. torch: HEIGHTxWIDTH, or one number."),
    ] = None,
    memory_gib: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Resident memory that a build may hold, by default 8; TensorRT's only."),
    ] = None,
    timing_cache: Annotated[Optional[Path], typer.Option(help="File of measured tactics; tensorrt only.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="Build into a copy of the bundle here.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option(help="Build again what is up to date.")] = False,
) -> None:
    """Build TensorRT plans for a bundle, each engine in a process of its own; or compile its networks for torch.

    What is compiled for torch lies in a cache of yours (DDM_RT_CACHE, by default ~/.cache/ddm_rt), is taken by
    --backend torch from then on, and runs on this kind of processor and this version of torch alone.

    Examples:

        ddm-rt build digits --backend torch --precision bf16

        ddm-rt build bundles/sd --backend torch --precision bf16 --device cuda --batch 2,8,16 --size 512

        ddm-rt build digits --backend tensorrt-rtx --sm 89 --out bundles/digits

        ddm-rt build bundles/ours --backend tensorrt --batch 1,16,64
    """
    from ddm_rt.workflows.build import MEMORY_GIB, build_package, build_plans, check_options, describe, describe_package

    given = {
        "--sm": sm,
        "--timing-cache": timing_cache,
        "--memory-gib": memory_gib,
        "--out": out,
        "--precision": precision,
        "--device": device,
    }
    check_options(backend, [name for name, value in given.items() if value is not None])
    if backend == Backend.TORCH:
        with display.progress(errors) as bars:
            update = display.callback(bars, "compiling")
            package = build_package(
                bundle,
                precision=precision,
                device=device,
                batch=batch,
                size=size,
                force=force,
                progress=lambda done, total, part: update(done, total, {}),
            )
        say(describe_package(package))
        return
    with display.status(errors) as show:
        made = build_plans(
            bundle,
            backend,
            architectures=sm.split(",") if sm else (),
            batch=batch,
            size=size,
            memory_gib=MEMORY_GIB if memory_gib is None else memory_gib,
            timing_cache=timing_cache,
            out=out,
            force=force,
            progress=show,
        )
    say("\n".join(map(describe, made)))


@app.command("train-judge")
def train_judge(
    out: Annotated[Path, typer.Option("--out", help="The ONNX file to write.")],
    data: Annotated[
        str, typer.Option(help="Labelled images that no generator sees: digits (its judge split), or a folder.")
    ] = "digits",
    held_out: Annotated[
        str | None, typer.Option(help="Labelled images that measure the judge; digits: its reference split.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps.")] = 1200,
    seed: Annotated[int, typer.Option()] = 0,
    image_size: Annotated[int, typer.Option()] = 32,
    channels: Annotated[int, typer.Option()] = 1,
) -> None:
    """Train the classifier that measures groups. It never takes part in training or sampling a generator.

    Example: ddm-rt train-judge --data digits --out judge.onnx
    """
    from ddm_rt.workflows.train_judge import make_judge

    with display.progress(errors) as bars:
        callback = display.callback(bars, "judge")
        accuracy = make_judge(
            data,
            held_out,
            out,
            steps=steps,
            seed=seed,
            image_size=image_size,
            channels=channels,
            progress=lambda done, loss: callback(done, steps, {"loss": loss}),
        )
    say(f"judge: {out}\nheld-out accuracy: {accuracy:.4f}")
