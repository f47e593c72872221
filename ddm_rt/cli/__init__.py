"""The command line. Each command imports its rooms on use, so `ddm-rt sample` never loads torch."""

import errno
import json
import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ddm_rt.cli import display
from ddm_rt.config import PRESETS, Backend, Balance, IndicatorMode, Precision, SamplerName
from ddm_rt.errors import DdmError

app = typer.Typer(
    name="ddm-rt",
    help="Balanced sampling from diffusion models, without being told which groups to balance.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(markup=False)  # a path may hold brackets
errors = Console(stderr=True)
_DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
    *(errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
# What a serving environment does without -> the extra that brings it.
_EXTRAS = dict.fromkeys(("torch", "diffusers", "onnx", "onnxscript", "safetensors", "sklearn"), "train")
_EXTRAS |= dict.fromkeys(("scipy", "matplotlib"), "evaluate")

Out = Annotated[Path, typer.Option("--out", help="Directory to write; must not exist, or be empty.")]
Threads = Annotated[Optional[int], typer.Option("--threads", min=1, help="CPU threads; by default all.")]  # noqa: UP045


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ddm_rt").setLevel(logging.INFO)  # our own words; onnxscript tells of every node it removes
    try:
        app()
    except DdmError as error:
        _fail(str(error))
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package not in _EXTRAS:
            raise
        _fail(f"the package {package} is not installed; this command needs pip install 'ddm-rt[{_EXTRAS[package]}]'")
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail(f"{error.filename or 'writing'}: {error.strerror}; nothing was left half-written")


def _fail(message: str) -> None:
    # Text, not markup: the brackets of a shape are the message's own.
    errors.print(Text.assemble(("error:", "red"), " ", " ".join(message.split())), soft_wrap=True, highlight=False)
    raise SystemExit(2)


def _say(text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False)  # unbroken: paths are there to be copied


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="Run directory; the same command again resumes it.")],
    preset: Annotated[str, typer.Option(help=f"One of: {', '.join(PRESETS)}.")] = "digits",
    data: Annotated[Optional[str], typer.Option(help="digits:CLASSES@RATIO, or a folder of images.")] = None,  # noqa: UP045
    indicator: Annotated[
        IndicatorMode | None, typer.Option(help="none: plain. labels: DDM as published. codes: ours.")
    ] = None,
    indicator_weight: Annotated[
        float | None, typer.Option(help="The paper's α; .05 with labels, .01 with codes.")
    ] = None,
    top_codes: Annotated[Optional[int], typer.Option(help="How many modes get equal shares.")] = None,  # noqa: UP045
    micro_codes: Annotated[Optional[int], typer.Option(help="Leaves of the tree of codes.")] = None,  # noqa: UP045
    codes: Annotated[Optional[Path], typer.Option(help="JSON with codes to use in place of discovery.")] = None,  # noqa: UP045
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
    """
    from ddm_rt.config import resolve

    overrides: dict[str, Any] = dict(_assignment(text) for text in set_ or ())
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
    _say(f"run: {out}")


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A finished run of `ddm-rt train`; or a bundle, to be converted.")],
    out: Out,
    precision: Annotated[Precision, typer.Option(help="What the graphs compute in.")] = Precision.FP32,
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
    """
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
    _say(f"bundle: {out}\nid: {bundle.bundle_id}\nprecision: {bundle.config.precision}")


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
    for plan in made:
        _say(describe(plan))


@app.command()
def sample(
    out: Out,
    bundle: Annotated[Optional[str], typer.Argument(help="A bundle directory, or the shipped one: digits.")] = None,  # noqa: UP045
    n: Annotated[int, typer.Option("-n", help="Number of images.")] = 16,
    seed: Annotated[int, typer.Option(help="Image i has the seed derive(seed, i).")] = 0,
    target: Annotated[str, typer.Option(help="uniform, or shares of top codes: code:0=.3,code:1=.7.")] = "uniform",
    balance: Annotated[Balance, typer.Option(help="on: codes by quota. off: the null code.")] = Balance.AUTO,
    steps: Annotated[Optional[int], typer.Option(help="Sampling steps.")] = None,  # noqa: UP045
    sampler: Annotated[Optional[str], typer.Option(help=f"One of: {', '.join(SamplerName)}.")] = None,  # noqa: UP045
    indicator_guidance_scale: Annotated[Optional[float], typer.Option(help="Guidance on the code.")] = None,  # noqa: UP045
    height: Annotated[Optional[int], typer.Option(help="Pixels.")] = None,  # noqa: UP045
    width: Annotated[Optional[int], typer.Option(help="Pixels.")] = None,  # noqa: UP045
    backend: Annotated[str, typer.Option(help=f"One of: {', '.join(Backend)}.")] = "auto",
    threads: Threads = None,
    from_: Annotated[Optional[Path], typer.Option("--from", help="Replay this manifest.json.")] = None,  # noqa: UP045
    index: Annotated[Optional[int], typer.Option(help="With --from: this image alone.")] = None,  # noqa: UP045
) -> None:
    """Write balanced images, a contact sheet and manifest.json.

    Examples:

        ddm-rt sample digits -n 64 --seed 0 --out out/

        ddm-rt sample digits -n 64 --target code:0=.3,code:1=.7 --out out30/

        ddm-rt sample digits --from out/manifest.json --index 5 --out again/
    """
    from ddm_rt.bundle import check_free
    from ddm_rt.sample.pipeline import Pipeline

    if bundle is None:
        raise DdmError("bundle: name a bundle directory, or the shipped one: digits")
    if index is not None and from_ is None:
        raise DdmError("--index: names an image of a manifest; give that with --from")
    check_free(out)
    pipeline = Pipeline.load(bundle, backend=backend, threads=threads)
    with display.progress(errors) as bars:
        on_step = display.step_callback(bars, "sampling")
        if from_ is not None:
            generation = pipeline.replay(from_, index=index, on_step=on_step)
        else:
            generation = pipeline.generate(
                n=n,
                seed=seed,
                target=target,
                balance=balance,
                num_steps=steps,
                sampler=sampler,
                indicator_guidance_scale=indicator_guidance_scale,
                height=height,
                width=width,
                on_step=on_step,
            )
    generation.save(out)
    _say(f"{len(generation.images)} images: {out}\nlook at: {out / 'contact_sheet.png'}")


@app.command()
def evaluate(
    methods: Annotated[
        list[str], typer.Argument(metavar="[NAME=]PATH...", help="Bundles, or directories that `sample` wrote.")
    ],
    out: Out,
    judge: Annotated[str, typer.Option(help="digits, or an ONNX classifier.")] = "digits",
    groups: Annotated[str, typer.Option(help="Two or more of the judge's classes, by comma.")] = "3,8",
    reference: Annotated[str, typer.Option(help="Held-out labelled images: digits:..., or a folder.")] = "digits:3,8",
    training: Annotated[Optional[str], typer.Option(help="The training images, for nearest neighbours.")] = None,  # noqa: UP045
    n: Annotated[int, typer.Option("-n", help="Images for each bundle.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the images.")] = 0,
    min_per_group: Annotated[
        int, typer.Option(help="Equal n per group for quality; bundles generate until it is reached.")
    ] = 400,
    classes: Annotated[str | None, typer.Option(help="The judge's classes, where its file doesn't name them.")] = None,
) -> None:
    """Measure group shares and quality with a judge, and write report/index.html.

    Example: ddm-rt evaluate vanilla=bundles/vanilla ours=bundles/ours --training digits:3,8@4:1 --out report/
    """
    from ddm_rt.evaluate.run import evaluate_methods

    with display.progress(errors) as bars:
        page, table = evaluate_methods(
            [_named(text) for text in methods],
            out,
            judge=judge,
            classes=classes.split(",") if classes else None,
            groups=groups.split(","),
            reference=reference,
            training=training,
            n=n,
            seed=seed,
            min_per_group=min_per_group,
            on_step=display.step_callback(bars, "generating"),
        )
    console.print(table)
    _say(f"report: {page}")


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
    _say(f"judge: {out}\nheld-out accuracy: {accuracy:.4f}")


@app.command()
def doctor(
    bundle: Annotated[Optional[str], typer.Argument(help="Also: which backends and plans of this bundle fit.")] = None,  # noqa: UP045
) -> None:
    """What this machine can run, and why not the rest.

    Example: ddm-rt doctor bundles/ours
    """
    from ddm_rt.bundle import Bundle
    from ddm_rt.cli.doctor import checks

    table = Table("part", "available", "detail")
    for name, ok, detail in checks(None if bundle is None else Bundle.load(bundle)):
        table.add_row(name, Text("yes", "green") if ok else Text("no", "yellow"), detail)
    console.print(table)


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Working directory; a second run resumes it.")] = Path("demo-out"),
    data: Annotated[str, typer.Option(help="A biased set of the shipped digits, two classes.")] = "digits:3,8@4:1",
    steps: Annotated[Optional[int], typer.Option(help="Training steps of each model.")] = None,  # noqa: UP045
) -> None:
    """Train vanilla, paper mode and ours on biased digits, then sample, evaluate and report. Minutes, not hours.

    Example: ddm-rt demo --out demo-out
    """
    from ddm_rt.cli.demo import run_demo

    page, table = run_demo(out, data, steps, console)
    console.print(table)
    _say(f"report: {page}")


@app.command()
def version() -> None:
    """Print the version."""
    import ddm_rt

    _say(ddm_rt.__version__)


def _assignment(text: str) -> tuple[str, Any]:
    name, sign, value = text.partition("=")
    if not sign:
        raise DdmError(f"--set {text!r}: expected FIELD=VALUE, for example train.batch_size=32")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _named(text: str) -> tuple[str, Path]:
    name, sign, path = text.partition("=")
    return (name, Path(path)) if sign else (Path(text).name, Path(text))


if __name__ == "__main__":
    main()
