"""`ddm-rt compare`: the gate that a faster configuration has to pass."""

import dataclasses
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import Guidance, NegativePrompt, Prompt, Threads, app, console, errors, say
from ddm_rt.config import Balance, Precision

if TYPE_CHECKING:
    from ddm_rt.evaluate.comparison.sides import Side

_SIDE = (
    "BUNDLE[@KEY=VALUE,...], or a directory that `sample` wrote. Keys: steps, sampler, guidance, text_guidance, "
    "precision, backend, device, threads."
)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="As A, which it is held against.")],
    out: Annotated[Path | None, typer.Option("--out", help="Directory for index.html and compare.json.")] = None,
    judge: Annotated[str, typer.Option(help="digits, or an ONNX classifier.")] = "digits",
    groups: Annotated[str, typer.Option(help="Two or more of the judge's classes, by comma.")] = "3,8",
    reference: Annotated[
        str, typer.Option(help="Held-out labelled images, for quality: digits:..., a folder, or none.")
    ] = "digits:3,8",
    n: Annotated[int, typer.Option("-n", min=1, help="Pairs.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the images.")] = 0,
    target: Annotated[str, typer.Option(help="As for `sample`.")] = "uniform",
    balance: Annotated[Balance, typer.Option(help="As for `sample`.")] = Balance.AUTO,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: Guidance = None,
    margin: Annotated[float, typer.Option(help="The largest difference in a share that counts as none.")] = 0.03,
    rounds: Annotated[int, typer.Option(min=0, help="Interleaved requests that are timed; 0: none.")] = 5,
    classes: Annotated[str | None, typer.Option(help="The judge's classes, where its file has none.")] = None,
    threads: Threads = None,
    record: Annotated[
        bool, typer.Option("--record", help="Keep in B whether it passed; where it did, --backend auto takes B's.")
    ] = False,
) -> None:
    """Does B keep A's group shares? The same seeds and codes, a judge's paired labels; the exit code is the decision.

    0: kept (the 90 % interval of every group's difference lies within the margin); 1: drifted (p < .05); 3:
    undecided, with how many more images would decide.

    With precision=fp16, int8, ... an fp32 bundle is converted first, into a bundle that ends with the comparison;
    backend=torch computes in bf16 or fp16 by itself. A sampled directory brings its prompts, as it does its seeds and
    codes, for the other side too.

    With --record, B's bundle keeps what was found for its backend on this CPU or GPU: drift, FD_ddm (at most .06
    passes), the Frechet distance (1.15 times A's) and speed (more than A's). Without such a record `auto` never takes
    openvino, nor half precision on a GPU.

    Examples:

        ddm-rt compare digits digits@steps=4 --out drift/

        ddm-rt compare digits digits@precision=int8 -n 2000

        ddm-rt compare digits bundles/digits-int8 -n 2000

        ddm-rt compare digits@backend=onnxruntime digits@backend=tensorrt,steps=8

        ddm-rt compare out/ out-of-another-machine/

        ddm-rt compare digits bundles/digits-bf16@backend=openvino --record

        ddm-rt compare bundles/ours bundles/ours@backend=torch,precision=bf16,device=cuda --record

        ddm-rt compare sd sd@precision=fp16 --prompt "a nurse" --judge gender.onnx --groups female,male --reference none
    """
    from ddm_rt.evaluate.comparison.compare import check_groups
    from ddm_rt.evaluate.comparison.compare import compare as measure
    from ddm_rt.evaluate.comparison.gates import check_sides
    from ddm_rt.evaluate.comparison.gates import record as keep
    from ddm_rt.evaluate.comparison.sides import parse_side
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.evaluate.report import comparison_page
    from ddm_rt.files import check_free

    if out is not None:
        check_free(out)
    sides = [parse_side(text, threads) for text in (a, b)]
    real = None if reference == "none" else reference
    if record:
        check_sides(*sides, reference=real, target=target, balance=balance, rounds=rounds)
    loaded, names = Judge.load(judge, classes=classes.split(",") if classes else None), groups.split(",")
    check_groups(loaded, names, margin)  # before minutes are spent on converting
    with display.progress(errors) as bars, _converted(sides, display.callback(bars, "converting")) as (side_a, side_b):
        comparison, pictures = measure(
            side_a,
            side_b,
            judge=loaded,
            groups=names,
            reference=real,
            n=n,
            seed=seed,
            target=target,
            balance=balance,
            prompt=prompt,
            negative_prompt=negative_prompt,
            guidance_scale=guidance_scale,
            margin=margin,
            rounds=rounds,
            on_step=display.step_callback(bars, "generating"),
        )
    for table in comparison_page.terminal_tables(comparison):
        console.print(table)
    say(comparison_page.sentence(comparison))
    if out is not None:
        say(f"report: {comparison_page.write(comparison, pictures, out)}")
    if record:
        failures = keep(sides[1].source, comparison).failures()
        verdict = f"auto does not take it: {' and '.join(failures)}" if failures else "auto takes it here"
        say(f"recorded in {sides[1].source}: {comparison.b.backend}, {verdict}")
    raise typer.Exit(int(comparison.labels.decision))


@contextmanager
def _converted(sides: Sequence["Side"], update: display.Callback) -> Iterator[list["Side"]]:
    """The sides, those of fp32 bundles in the precision that they ask for; what is converted ends with the block.

    Others, and those whose backend computes in it, are left to whoever opens them.
    """
    made: dict[tuple[str, Precision], str] = {}
    with tempfile.TemporaryDirectory(prefix="ddm-rt-") as folder:

        def opened(side: "Side") -> "Side":
            if side.precision is None or not _is_to_be_converted(side):
                return side
            key = side.source, side.precision
            if key not in made:
                made[key] = _convert(side, side.precision, Path(folder) / str(len(made)), update)
            return dataclasses.replace(side, source=made[key])

        yield [opened(side) for side in sides]


def _is_to_be_converted(side: "Side") -> bool:
    from ddm_rt.bundle import Bundle

    if side.is_sampled or side.rounds or side.precision is Precision.FP32:
        return False
    return Bundle.load(side.source, verify=False).config.precision is Precision.FP32


def _convert(side: "Side", precision: Precision, out: Path, update: display.Callback) -> str:
    from ddm_rt.workflows.export import export

    bundle = export(side.source, out, precision, progress=lambda done, total, part: update(done, total, {}))
    say(
        f"{side.source} was converted to {precision} for this comparison (id {bundle.bundle_id[:12]}); "
        f"`ddm-rt export {side.source} --precision {precision} --out DIR` keeps it"
    )
    return str(bundle.path)
