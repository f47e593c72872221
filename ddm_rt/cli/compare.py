"""`ddm-rt compare`: the gate that a faster configuration has to pass."""

from pathlib import Path
from typing import Annotated, Optional

import typer

from ddm_rt.cli import display
from ddm_rt.cli.app import Threads, app, console, errors, say
from ddm_rt.config import Balance

_SIDE = "BUNDLE[@KEY=VALUE,...], or a directory that `sample` wrote. Keys: steps, sampler, guidance, backend, threads."


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help=_SIDE)],
    b: Annotated[str, typer.Argument(metavar="B", help="As A, which it is held against.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Directory for index.html and compare.json.")] = None,  # noqa: UP045
    judge: Annotated[str, typer.Option(help="digits, or an ONNX classifier.")] = "digits",
    groups: Annotated[str, typer.Option(help="Two or more of the judge's classes, by comma.")] = "3,8",
    reference: Annotated[
        str, typer.Option(help="Held-out labelled images, for quality: digits:..., a folder, or none.")
    ] = "digits:3,8",
    n: Annotated[int, typer.Option("-n", min=1, help="Pairs.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the images.")] = 0,
    target: Annotated[str, typer.Option(help="As for `sample`.")] = "uniform",
    balance: Annotated[Balance, typer.Option(help="As for `sample`.")] = Balance.AUTO,
    margin: Annotated[float, typer.Option(help="The largest difference in a share that counts as none.")] = 0.03,
    rounds: Annotated[int, typer.Option(min=0, help="Interleaved requests that are timed; 0: none.")] = 5,
    classes: Annotated[Optional[str], typer.Option(help="The judge's classes, where its file has none.")] = None,  # noqa: UP045
    threads: Threads = None,
) -> None:
    """Does B keep A's group shares? The same seeds and codes, a judge's paired labels; the exit code is the decision.

    0: kept (the 90 % interval of every group's difference lies within the margin); 1: drifted (p < .05); 3:
    undecided, with how many more images would decide.

    Examples:

        ddm-rt compare digits digits@steps=4 --out drift/

        ddm-rt compare digits bundles/digits-int8 -n 2000

        ddm-rt compare digits@backend=onnxruntime digits@backend=tensorrt,steps=8

        ddm-rt compare out/ out-of-another-machine/
    """
    from ddm_rt.bundle import check_free
    from ddm_rt.evaluate import comparison_page
    from ddm_rt.evaluate.compare import compare as measure
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.evaluate.sides import parse_side

    if out is not None:
        check_free(out)
    with display.progress(errors) as bars:
        comparison, pictures = measure(
            parse_side(a, threads),
            parse_side(b, threads),
            judge=Judge.load(judge, classes=classes.split(",") if classes else None),
            groups=groups.split(","),
            reference=None if reference == "none" else reference,
            n=n,
            seed=seed,
            target=target,
            balance=balance,
            margin=margin,
            rounds=rounds,
            on_step=display.step_callback(bars, "generating"),
        )
    for table in comparison_page.terminal_tables(comparison):
        console.print(table)
    say(comparison_page.sentence(comparison))
    if out is not None:
        say(f"report: {comparison_page.write(comparison, pictures, out)}")
    raise typer.Exit(int(comparison.labels.decision))
