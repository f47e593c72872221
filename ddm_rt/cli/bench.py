"""`ddm-rt bench`: how fast a bundle is on this machine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ddm_rt.cli import display
from ddm_rt.cli.app import Guidance, NegativePrompt, Prompt, Threads, app, console, errors, say
from ddm_rt.errors import DdmError

if TYPE_CHECKING:
    from ddm_rt.evaluate.latency import SideSpeed, Speed

_SIDE = "BUNDLE[@KEY=VALUE,...]. Keys: steps, sampler, guidance, text_guidance, precision, backend, device, threads."


@app.command()
def bench(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help=_SIDE)],
    against: Annotated[str | None, typer.Option(help="The baseline, as BUNDLE; the two take turns.")] = None,
    batch: Annotated[str, typer.Option(help="Images of a request, by comma.")] = "1,4,16",
    rounds: Annotated[int, typer.Option(min=1, help="Requests of each size, at most.")] = 30,
    seconds: Annotated[float, typer.Option(help="For each size, once three requests are through.")] = 60,
    processes: Annotated[int, typer.Option(min=0, help="New processes that make one image; 0: none.")] = 3,
    prompt: Prompt = None,
    negative_prompt: NegativePrompt = None,
    guidance_scale: Guidance = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the tables.")] = False,
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
    with display.progress(errors) as bars:
        speed = measure(
            parse_side(bundle, threads),
            None if against is None else parse_side(against, threads),
            batches=sizes,
            rounds=rounds,
            seconds=seconds,
            processes=processes,
            text=text_of(prompt=prompt, negative_prompt=negative_prompt, guidance_scale=guidance_scale),
            on_round=display.step_callback(bars, "measuring"),
        )
    if as_json:
        print(speed.model_dump_json(indent=1))
        return
    for table in _tables(speed):
        console.print(table)
    say("\n".join(_notes(speed)))


def _tables(speed: "Speed") -> Iterator[Table]:
    baseline = speed.baseline
    requests = Table(
        "side", "images", "p50 ms [quartiles]", "p95", "p99", "images/s", "times the baseline", title="requests"
    )
    for side in (speed.side,) if baseline is None else (speed.side, baseline):
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
    for side in (speed.side,) if baseline is None else (speed.side, baseline):
        first.add_row(
            side.facts.label,
            ", ".join(f"{value:.2f}" for value in side.cold_s) or "not measured",
            f"{side.load_s:.2f}",
            f"{side.first_request_s:.3f}",
            next((f"{row.latency_p50_ms / 1000:.3f}" for row in side.rows if row.n == 1), "not measured"),
        )
    yield first


def _notes(speed: "Speed") -> list[str]:
    machine = speed.machine
    lines = [_what(side) for side in (speed.side, speed.baseline) if side is not None]
    rounds = sorted({row.rounds for row in speed.side.rows})
    lines.append(
        f"ddm_rt {speed.version}; {machine.system}, {machine.processor}, {machine.cpus} CPUs"
        + (f" at {machine.clock_mhz:.0f} MHz" if machine.clock_mhz else "")
        + f", {machine.memory_gib:g} GiB, GPU: {machine.gpu or 'none'}; load average before: {machine.load_average}; "
        f"{' to '.join(map(str, dict.fromkeys((rounds[0], rounds[-1]))))} rounds"
    )
    return lines


def _what(side: "SideSpeed") -> str:
    facts = side.facts
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items())
    return (
        f"{facts.label}: bundle {facts.bundle_id[:12]}, {facts.backend} {facts.precision}, {facts.threads} threads, "
        f"{facts.sampler} {facts.num_steps} steps, guidance {facts.indicator_guidance_scale:g}; {versions}"
    )
