"""`ddm-rt compare` and `bench`: bundles with settings of their own, held against each other or timed."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import app, console, errors, say
from ddm_rt.config import Balance
from ddm_rt.errors import DdmError
from ddm_rt.sample.request import Request

if TYPE_CHECKING:
    from ddm_rt.bundle import Bundle
    from ddm_rt.evaluate.latency import Speed

_KEYS = "Keys: steps, sampler, guidance, text_guidance, precision, backend, device, threads."


@app.command()
@options.prompts
def compare(
    a: Annotated[
        str, Argument(metavar="A", help=f"BUNDLE[@KEY=VALUE,...], or a directory that `sample` wrote. {_KEYS}")
    ],
    b: Annotated[str, Argument(metavar="B", help="As A, which it is held against.")],
    *,
    out: Annotated[Path | None, Option("--out", help="Directory for index.html and compare.json.")] = None,
    judge: options.Judge = "digits",
    groups: options.Groups = "3,8",
    reference: Annotated[
        str, Option(help="Held-out labelled images, for quality: digits:..., a folder, or none.")
    ] = "digits:3,8",
    n: Annotated[int, Option("-n", min=1, help="Pairs.")] = 1000,
    seed: options.Seed = 0,
    target: Annotated[str, Option(help="As for `sample`.")] = "uniform",
    balance: Annotated[Balance, Option(help="As for `sample`.")] = Balance.AUTO,
    request: Request,
    margin: Annotated[float, Option(help="The largest difference in a share that counts as none.")] = 0.03,
    rounds: Annotated[int, Option(min=0, help="Interleaved requests that are timed; 0: none.")] = 5,
    classes: options.Classes = None,
    threads: options.Threads = None,
    record: Annotated[
        bool, Option("--record", help="Keep in B whether it passed; where it did, --backend auto takes B's.")
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
    from ddm_rt.evaluate.comparison import gates
    from ddm_rt.evaluate.comparison.sides import parse_side
    from ddm_rt.evaluate.report import comparison_page
    from ddm_rt.evaluate.run import text_of
    from ddm_rt.workflows.compare import compare as measure

    sides = parse_side(a, threads), parse_side(b, threads)
    with display.progress(errors) as bars:
        comparison, page = measure(
            *sides,
            out=out,
            judge=judge,
            classes=options.names(classes),
            groups=groups.split(","),
            reference=None if reference == "none" else reference,
            n=n,
            seed=seed,
            target=target,
            balance=balance,
            text=text_of(request),
            margin=margin,
            rounds=rounds,
            to_record=record,
            on_stage=display.step_callback(bars, "converting"),
            on_converted=_say_converted,
            on_step=display.step_callback(bars, "generating"),
        )
    for table in comparison_page.terminal_tables(comparison):
        console.print(table)
    say(comparison_page.sentence(comparison))
    if page is not None:
        say(f"report: {page}")
    if record:
        failures = gates.record(sides[1].source, comparison).failures()
        verdict = f"auto does not take it: {' and '.join(failures)}" if failures else "auto takes it here"
        say(f"recorded in {sides[1].source}: {comparison.b.backend}, {verdict}")
    raise typer.Exit(int(comparison.labels.decision))


def _say_converted(source: str, bundle: "Bundle") -> None:
    precision = bundle.config.precision
    say(
        f"{source} was converted to {precision} for this comparison (id {bundle.bundle_id[:12]}); "
        f"`ddm-rt export {source} --precision {precision} --out DIR` keeps it"
    )


@app.command()
@options.prompts
def bench(
    bundle: Annotated[str, Argument(metavar="BUNDLE", help=f"BUNDLE[@KEY=VALUE,...]. {_KEYS}")],
    *,
    against: Annotated[str | None, Option(help="The baseline, as BUNDLE; the two take turns.")] = None,
    batch: Annotated[str, Option(help="Images of a request, by comma.")] = "1,4,16",
    rounds: Annotated[int, Option(min=1, help="Requests of each size, at most.")] = 30,
    seconds: Annotated[float, Option(help="For each size, once three requests are through.")] = 60,
    processes: Annotated[int, Option(min=0, help="New processes that make one image; 0: none.")] = 3,
    request: Request,
    threads: options.Threads = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON in place of the tables.")] = False,
) -> None:
    """Latency over batch sizes, images per second, and the time from process start to the first image.

    Requests run one after the other in one process, after one that isn't counted. Run it on a machine that does nothing
    else: the load average is printed, and the spread.

    Examples:

        ddm-rt bench digits

        ddm-rt bench digits@backend=openvino --against digits@backend=onnxruntime

        ddm-rt bench bundles/digits-int8@backend=openvino,steps=8 --against digits --batch 1,32 --json

        ddm-rt bench bundles/sd --prompt "a photo of a doctor" --batch 1 --seconds 600
    """
    from ddm_rt.evaluate.comparison.sides import parse_side
    from ddm_rt.evaluate.latency import bench as measure
    from ddm_rt.evaluate.run import text_of

    sizes = [int(part) if part.strip().isdecimal() else 0 for part in batch.split(",")]
    if min(sizes) < 1:
        raise DdmError(f"--batch {batch!r}: expected numbers of at least 1 by comma, for example 1,4,16")
    with display.bar("measuring") as update:
        speed = measure(
            parse_side(bundle, threads),
            None if against is None else parse_side(against, threads),
            batches=sizes,
            rounds=rounds,
            seconds=seconds,
            processes=processes,
            text=text_of(request),
            on_round=update,
        )
    if as_json:
        print(speed.model_dump_json(indent=1))
        return
    for table in _tables(speed):
        console.print(table)
    say("\n".join(_notes(speed)))


def _tables(speed: "Speed") -> Iterator[Table]:
    baseline = speed.baseline
    sides = (speed.side,) if baseline is None else (speed.side, baseline)
    requests = Table(
        "side", "images", "p50 ms [quartiles]", "p95", "p99", "images/s", "times the baseline", title="requests"
    )
    for side in sides:
        for row in side.rows:
            times = "" if baseline is None else "baseline"
            if row.speedup is not None and row.speedup_range is not None:
                times = f"{row.speedup:.2f} [{row.speedup_range[0]:.2f}, {row.speedup_range[1]:.2f}]"
            requests.add_row(
                side.facts.label,
                str(row.n),
                f"{row.latency_p50_ms:.1f} [{row.latency_p25_ms:.1f}, {row.latency_p75_ms:.1f}]",
                f"{row.latency_p95_ms:.1f}",
                f"{row.latency_p99_ms:.1f}",
                f"{row.images_per_s:.3g}",
                times,
            )
        requests.add_section()
    yield requests
    first = Table("side", "new process, s", "load, s", "first request, s", "next, s", title="first image")
    for side in sides:
        first.add_row(
            side.facts.label,
            ", ".join(f"{value:.2f}" for value in side.cold_s) or "not measured",
            f"{side.load_s:.2f}",
            f"{side.first_request_s:.3f}",
            next((f"{row.latency_p50_ms / 1000:.3f}" for row in side.rows if row.n == 1), "not measured"),
        )
    yield first


def _notes(speed: "Speed") -> Iterator[str]:
    for side in filter(None, (speed.side, speed.baseline)):
        yield str(side.facts)
    machine, rounds = speed.machine, sorted({row.rounds for row in speed.side.rows})
    clock = f" at {machine.clock_mhz:.0f} MHz" if machine.clock_mhz else ""
    yield (
        f"ddm_rt {speed.version}; {machine.system}, {machine.processor}, {machine.cpus} CPUs{clock}, "
        f"{machine.memory_gib:g} GiB, GPU: {machine.gpu or 'none'}; load average before: {machine.load_average}; "
        f"{' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} rounds"
    )
