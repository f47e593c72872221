"""Commands that make things: runs, bundles, plans, judges. Each imports its rooms on use."""

from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.text import Text

from ddm_rt.cli import arguments, display
from ddm_rt.cli.app import app, console, errors, say
from ddm_rt.config import PRESETS, IndicatorMode, Precision
from ddm_rt.errors import DdmError


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="Run directory; the same command again resumes it.")],
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = "digits",
    data: Annotated[Optional[str], typer.Option(help="digits:CLASSES@RATIO, or a folder of images.")] = None,  # noqa: UP045
    indicator: Annotated[
        IndicatorMode | None,
        typer.Option(help="none: plain. labels: DDM as published. codes: ours. probe: ours, with --labels."),
    ] = None,
    indicator_weight: Annotated[
        float | None, typer.Option(help="The paper's α; .05 with labels, .01 with codes.")
    ] = None,
    top_codes: Annotated[Optional[int], typer.Option(help="How many modes get equal shares.")] = None,  # noqa: UP045
    micro_codes: Annotated[Optional[int], typer.Option(help="Leaves of the tree of codes.")] = None,  # noqa: UP045
    codes: Annotated[Optional[Path], typer.Option(help="JSON with codes to use in place of discovery.")] = None,  # noqa: UP045
    labels: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="With --indicator probe: CSV (image,label) of 64 to 256 training images."),
    ] = None,
    features: Annotated[Optional[Path], typer.Option(help="ONNX encoder to use for code discovery.")] = None,  # noqa: UP045
    image_size: Annotated[Optional[int], typer.Option(help="Side of the square images the model sees.")] = None,  # noqa: UP045
    channels: Annotated[Optional[int], typer.Option(help="1: grey, 3: colour.")] = None,  # noqa: UP045
    steps: Annotated[Optional[int], typer.Option(help="Optimizer steps.")] = None,  # noqa: UP045
    seed: Annotated[Optional[int], typer.Option(help="Of weights, features and minibatches.")] = None,  # noqa: UP045
    threads: Annotated[Optional[int], typer.Option(help="CPU threads; part of what decides the weights.")] = None,  # noqa: UP045
    log_steps: Annotated[bool, typer.Option(help="Plain progress lines on stdout, for logs.")] = False,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any field, e.g. train.batch_size=32.")
    ] = None,
) -> None:
    """Train a model; killed at any moment, the same command resumes to the same weights.

    Examples:

        ddm-rt train --data digits:3,8@4:1 --out runs/ours

        ddm-rt train --data photos/ --image-size 64 --channels 3 --indicator codes --top-codes 4 --out runs/photos

        ddm-rt train --data digits:3,8@4:1 --indicator labels --indicator-weight .05 --out runs/paper

        ddm-rt train --data photos/ --channels 3 --indicator probe --labels few.csv --out runs/few
    """
    from ddm_rt.config import resolve

    overrides: dict[str, Any] = dict(arguments.assignment(text) for text in set_ or ())
    named = {
        "data.source": data,
        "data.image_size": image_size,
        "data.channels": channels,
        "train.indicator": indicator,
        "train.indicator_weight": indicator_weight,
        "train.steps": steps,
        "train.seed": seed,
        "train.threads": threads,
        "codes.top_codes": top_codes,
        "codes.micro_codes": micro_codes,
        "codes.source": codes,
        "codes.labels": labels,
        "features.encoder": features,
    }
    config = resolve(preset, overrides | {k: v for k, v in named.items() if v is not None})
    from ddm_rt.train.run import Interrupted
    from ddm_rt.train.run import train as run_training

    with display.progress(errors) as bars:
        callbacks = {"features": display.callback(bars, "features"), "train": display.callback(bars, "training")}
        if log_steps:
            callbacks = {"features": display.log_lines("features"), "train": display.log_lines("step")}
        try:
            run_training(config, out, progress=callbacks)
        except Interrupted as stop:
            errors.print(Text(str(stop)), soft_wrap=True, highlight=False)
            raise typer.Exit(130) from None
    display.show_codes(out, console)
    say(f"run: {out}")


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
    with_weights: Annotated[bool, typer.Option(help="Add weights.safetensors, for the torch backend.")] = False,
    plugin: Annotated[bool, typer.Option(help="Add denoiser.plugin.onnx, for --backend tensorrt.")] = False,
    calibration_images: Annotated[
        int, typer.Option(min=1, help="int8, fp8: images, balanced by quota, that set the ranges.")
    ] = 64,
) -> None:
    """Make a bundle from a run: three ONNX graphs, checked against torch before anything is written.

    Examples:

        ddm-rt export runs/ours --out bundles/ours

        ddm-rt export runs/ours --precision fp16 --plugin --out bundles/ours-fp16

        ddm-rt export digits --precision int8 --out bundles/digits-int8

        ddm-rt export runs/sd --precision fp16 --diffusers pipelines/sd
    """
    if diffusers is not None:
        given = {"--out": out is not None, "--with-weights": with_weights, "--plugin": plugin}
        if wrong := [name for name, there in given.items() if there]:
            raise DdmError(f"{wrong[0]}: not with --diffusers, which writes no bundle")
        from ddm_rt.export.diffusers import export_diffusers

        export_diffusers(Path(source), diffusers, precision)
        say(f"diffusers pipeline: {diffusers}")
        return
    if out is None:
        raise DdmError("--out: missing; name a bundle directory to write, or with --diffusers a pipeline folder")
    from ddm_rt.cli.precision import export as export_source

    with display.progress(errors) as bars:
        update = display.callback(bars, "exporting")
        bundle = export_source(
            source,
            out,
            precision,
            with_weights=with_weights,
            plugin=plugin,
            calibration_images=calibration_images,
            progress=lambda done, total, part: update(done, total, {}),
        )
    say(f"bundle: {out}\nid: {bundle.bundle_id}\nprecision: {bundle.config.precision}")


@app.command()
def build(
    bundle: Annotated[str, typer.Argument(help="A bundle directory, or with --out the shipped one: digits.")],
    backend: Annotated[str, typer.Option(help="tensorrt or tensorrt-rtx.")],
    sm: Annotated[Optional[str], typer.Option(help="Compute capabilities, by comma; by default this GPU's.")] = None,  # noqa: UP045
    batch: Annotated[Optional[str], typer.Option(help="Batch sizes MIN,OPT,MAX; by default 1,8,32.")] = None,  # noqa: UP045
    size: Annotated[Optional[str], typer.Option(help="Pixels a side, MIN,OPT,MAX; by default as trained.")] = None,  # noqa: UP045
    memory_gib: Annotated[float, typer.Option(help="Resident memory that a build may hold.")] = 8,
    timing_cache: Annotated[Optional[Path], typer.Option(help="File of measured tactics; tensorrt only.")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="Build into a copy of the bundle here.")] = None,  # noqa: UP045
    force: Annotated[bool, typer.Option(help="Build again what is up to date.")] = False,
) -> None:
    """Build TensorRT plans for a bundle, each engine in a process of its own.

    Examples:

        ddm-rt build digits --backend tensorrt-rtx --sm 89 --out bundles/digits

        ddm-rt build bundles/ours --backend tensorrt --batch 1,16,64
    """
    from ddm_rt.cli.build import build_plans, describe

    with display.status(errors) as show:
        made = build_plans(
            bundle,
            backend,
            architectures=sm.split(",") if sm else (),
            batch=batch,
            size=size,
            memory_gib=memory_gib,
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
    from ddm_rt.cli.judge import make_judge

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
