"""`ddm-rt compare` and `bench`: bundles with settings of their own, held against each other or timed."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ddm_rt.cli import display, options
from ddm_rt.cli.app import console, errors, measures, say, tell
from ddm_rt.config import Balance
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.sample.request import Request

if TYPE_CHECKING:
    from ddm_rt.bundle import Bundle
    from ddm_rt.evaluate.latency import SideSpeed, Speed

_KEYS = (
    "The keys are steps, sampler, guidance, text_guidance, interval, apg, cads, cache, precision, backend, device and "
    "threads."
)


@measures(Other_options="rounds target balance classes")
@options.prompts
def compare(
    a: Annotated[
        str, Argument(metavar="A", help=f"BUNDLE[@KEY=VALUE,...], or a directory that ddm-rt sample wrote. {_KEYS}")
    ],
    b: Annotated[str, Argument(metavar="B", help="What is compared with A. It is written like A.")],
    *,
    out: Annotated[Path | None, Option(help="Directory for a report: index.html and compare.json.")] = None,
    judge: options.Judge = "digits",
    groups: options.Groups = "3,8",
    reference: Annotated[
        str, Option(help="Labelled images for quality: digits:CLASSES, folder or none.")
    ] = "digits:3,8",
    n: Annotated[int, Option("-n", min=1, help="Number of images of A and of B.")] = 1000,
    seed: options.Seed = 0,
    target: Annotated[str, Option(help="Shares to reach, as in ddm-rt sample.")] = "uniform",
    balance: Annotated[Balance, Option(help="Whether a quota draws the codes, as in ddm-rt sample.")] = Balance.AUTO,
    request: Request,
    margin: Annotated[float, Option(help="Largest difference of a share that still counts as none.")] = 0.03,
    frechet_ratio: Annotated[
        float, Option(help="Largest ratio of B's Frechet distance to A's that still counts as kept.")
    ] = 1.15,
    rounds: Annotated[int, Option(min=0, help="Number of requests that are timed, A and B in turn. 0 times none.")] = 5,
    classes: options.Classes = None,
    threads: options.Threads = None,
    record: Annotated[bool, Option(help="Record in B whether it passed, for --backend auto.")] = False,
) -> None:
    """Test whether B keeps A's group shares. Both make images with the same seeds and codes, and a judge labels them.

    The exit code is the decision. It is 0 if B keeps the shares: the 90 % interval of every group's difference lies
    within the margin. It is 1 if the shares have drifted (p < .05). It is 3 if this is undecided; the output then
    says how many more images would decide.

    Two more verdicts stand below it. They need a reference, and don't change the exit code. Quality is kept if the
    90 % interval of the Frechet distance, B's over A's, lies below --frechet-ratio. Diversity is kept if precision,
    recall and the Vendi score of each group stay above .95 of A's.

    With precision=fp16, int8 and the like, an fp32 bundle is converted for the comparison alone. backend=torch
    computes in bf16 or fp16 without that. A sampled directory gives its prompts, seeds and codes to the other side.

    With a --target over just the --groups, A's calibration draws the codes. One more line then says whether it holds
    for B, for example for A's student.

    With --record, B's bundle records how its backend did on this CPU or GPU. It passes without drift, with an FD_ddm
    of at most .06, a Frechet distance of at most 1.15 times A's, and more speed than A, and without a change of quality
    or diversity. Half precision must have kept both. --backend auto takes openvino,
    or half precision on a GPU, only on such a record.

    Examples:

        ddm-rt compare digits digits@steps=4 --out drift/
        ddm-rt compare digits digits@precision=int8 -n 2000
        ddm-rt compare bundles/calibrated bundles/student --target 3=.7,8=.3
        ddm-rt compare digits digits@interval=.2:.8
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
            frechet_ratio=frechet_ratio,
            rounds=rounds,
            to_record=record,
            on_stage=display.step_callback(bars, "converting"),
            on_converted=_say_converted,
            on_step=display.step_callback(bars, "generating"),
        )
    for table in comparison_page.terminal_tables(comparison):
        console.print(table)
    tell(comparison_page.sentence(comparison))
    if (told := comparison_page.calibration_sentence(comparison)) is not None:
        tell(told)
    for line in comparison_page.kept_sentences(comparison.kept):
        tell(line)
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


@measures()
@options.prompts
def bench(
    bundle: Annotated[str, Argument(metavar="BUNDLE", help=f"BUNDLE[@KEY=VALUE,...]. {_KEYS}")],
    *,
    against: Annotated[str | None, Option(help="Baseline, written like BUNDLE. The two take turns.")] = None,
    batch: Annotated[str, Option(help="Numbers of images in a request, with commas.")] = "1,4,16",
    rounds: Annotated[int, Option(min=1, help="Largest number of requests of each size.")] = 30,
    seconds: Annotated[float, Option(help="Seconds for each size. Three requests are made in any case.")] = 60,
    processes: Annotated[int, Option(min=0, help="New processes whose first image is timed. 0 times none.")] = 3,
    request: Request,
    threads: options.Threads = None,
    as_json: Annotated[bool, Option("--json", help="Print JSON, and no tables.")] = False,
) -> None:
    """Measure how fast a bundle is: latency, images per second, and the time to the first image.

    Requests run one after the other in one process. The first one isn't counted. Run it on a machine that does nothing
    else. The output holds the load average and the spread.

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
        raise DdmError(f"--batch {batch!r}: expected numbers of at least 1 with commas, for example 1,4,16")
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
    for side in filter(None, (speed.side, speed.baseline)):
        say("")
        tell(str(side.facts))
        console.print(_requests(side, against=speed.baseline))
        tell(_first_image(side))
    say("")
    tell(_machine(speed))


def _requests(side: "SideSpeed", against: "SideSpeed | None") -> Columns:
    rows = side.rows
    columns = [
        (
            "p50 ms [quartiles]",
            [f"{r.latency_p50_ms:.1f} [{r.latency_p25_ms:.1f}, {r.latency_p75_ms:.1f}]" for r in rows],
        ),
        ("p95 ms", [f"{row.latency_p95_ms:.1f}" for row in rows]),
        ("p99 ms", [f"{row.latency_p99_ms:.1f}" for row in rows]),
        ("images/s", [f"{row.images_per_s:.3g}" for row in rows]),
    ]
    if against is not None:
        times = [
            "baseline"
            if row.speedup is None or row.speedup_range is None
            else "{:.2f} [{:.2f}, {:.2f}]".format(row.speedup, *row.speedup_range)
            for row in rows
        ]
        columns.append(("times the baseline", times))
    return Columns({"images": [str(row.n) for row in rows]}, columns)


def _first_image(side: "SideSpeed") -> str:
    cold = ", ".join(f"{value:.2f}" for value in side.cold_s) or "not measured"
    later = next((f"{row.latency_p50_ms / 1000:.3f}" for row in side.rows if row.n == 1), "not measured")
    return (
        f"first image, in seconds: new process {cold}; loading {side.load_s:.2f}; "
        f"first request {side.first_request_s:.3f}; later requests {later}"
    )


def _machine(speed: "Speed") -> str:
    machine, rounds = speed.machine, sorted({row.rounds for row in speed.side.rows})
    clock = f" at {machine.clock_mhz:.0f} MHz" if machine.clock_mhz else ""
    return (
        f"ddm_rt {speed.version}; {machine.system}, {machine.processor}, {machine.cpus} CPUs{clock}, "
        f"{machine.memory_gib:g} GiB, GPU: {machine.gpu or 'none'}; load average before: {machine.load_average}; "
        f"{' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} rounds"
    )
