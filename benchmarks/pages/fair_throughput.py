"""Fair throughput: its table and charts, and the ideas for a faster engine that were dropped."""

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from bench_parts import bars, rows
from bench_parts.bars import Bar
from bench_parts.rows import Row
from registry import COMPILED, EAGER, EAGER_BF16, OPENVINO, OPENVINO_FREE, OURS_BF16, OURS_ORT
from store import Line, load, table

from ddm_rt.engine.gates import MAX_FD, MAX_FRECHET_RATIO
from ddm_rt.evaluate.comparison.paired import Decision


def best(row: Line) -> float:
    """Images per second at the batch size that suits the configuration best: the median."""
    return float(row["images_per_s"][str(row["best_batch"])][1])


def timed(results: Path) -> Line | None:
    """The record with those rows that were timed as well as judged; None before any was."""
    record = load("fair throughput", results)
    if record is None or "baseline" not in record:
        return None
    return record | {"rows": [row for row in record["rows"] if "images_per_s" in row]}


def page(results: Path) -> str:
    """Speed beside balance and quality, what fails a gate included; then the ideas that were dropped."""
    record = timed(results)
    return (fair(record) if record else "# Fair throughput\n") + "\n" + dropped(results)


def fair(record: Line) -> str:
    """The table, and which configuration is the fastest that passes."""
    by_name = {row["configuration"]: row for row in record["rows"]}
    baseline, reference = by_name[record["baseline"]], by_name[record["reference"]]
    batches = list(baseline["images_per_s"])
    columns = ("configuration", "what", "precision", *(f"batch {batch}" for batch in batches), "times")
    more = ("FD_ddm [95 %]", "Frechet (of the teacher's)", "drift", "peak MiB", "passes")
    machine = record["machine"]
    return (
        "# Fair throughput\n\n"
        f"Images per second, medians [quartiles] of {record['rounds']} interleaved rounds; times: of the authors' way, "
        "each at the batch size that suits it best.\n\n"
        + table((*columns, *more), (_row(row, batches, best(baseline), reference) for row in record["rows"]))
        + _fastest(record["rows"], baseline)
        + f"\nGates: FD_ddm at most {MAX_FD:g}, Frechet distance at most {MAX_FRECHET_RATIO:g} of that of "
        f"{record['reference']}. n = {record['n']} images a row, seed {record['seed']}, groups "
        f"{' and '.join(record['groups'])}. Drift: what `ddm-rt compare` says of the same seeds and codes.\n\n"
        f"{machine['processor']}, {machine['cpus']} CPUs, {record['threads']} threads, load average before "
        f"{machine['load_average']}, commit {record['commit']}; `{record['command']}`\n"
    )


def _row(row: Line, batches: Sequence[str], baseline: float, reference: Line) -> list[str]:
    rates = []
    for batch in batches:
        low, middle, high = row["images_per_s"][batch]
        text = f"{_three(middle)} [{_three(low)}, {_three(high)}]"
        rates.append(f"**{text}**" if str(row["best_batch"]) == batch else text)
    low, high = row["balance"]["fd_ddm_interval"]
    return [
        *(row["configuration"], row["what"], row["precision"]),
        *rates,
        f"{best(row) / baseline:.1f}",
        f"{row['fd']:.3f} [{low:.3f}, {high:.3f}]",
        f"{row['frechet']:.2f} ({row['frechet'] / reference['frechet']:.2f})",
        Decision(row["drift"]["decision"]).name.lower() if "drift" in row else "",
        f"{row['peak_mem_mib']:.0f}",
        "yes" if row["passes"] else "no",
    ]


def _three(rate: float) -> str:
    """Three digits, without an exponent."""
    return f"{float(f'{rate:.3g}'):,g}"


def _fastest(found: Sequence[Line], baseline: Line) -> str:
    fastest = max((row for row in found if row["passes"]), key=best, default=None)
    if fastest is None:
        return ""
    single, alone = (row["images_per_s"].get("1") for row in (fastest, baseline))
    return (
        f"\nThe fastest that passes both gates is {fastest['configuration']}: "
        f"{best(fastest) / best(baseline):.1f} times the authors' way"
        + (f"; at batch 1, {single[1] / alone[1]:.1f} times it.\n" if single and alone else ".\n")
    )


def chart(results: Path) -> str:
    """Images per second of all rows, those that fail a gate pale."""
    record = timed(results)
    return _chart(record, [row["configuration"] for row in record["rows"]], "All configurations") if record else ""


def ladder(results: Path) -> str:
    """Images per second, each bar with the idea that it adds."""
    record = timed(results)
    return _chart(record, record["ladder"], "One idea more in each bar") if record else ""


def _chart(record: Line, names: Sequence[str], title: str) -> str:
    by_name = {row["configuration"]: row for row in record["rows"]}
    baseline = best(by_name[record["baseline"]])
    shown = [(name, best(by_name[name]), by_name[name]["passes"]) for name in names if name in by_name]
    found = [
        Bar(name, rate, f"{_three(rate)} ({rate / baseline:.1f}x){'' if passes else ', fails a gate'}", passes)
        for name, rate, passes in shown
    ]
    return bars.svg({"": found}, title, "images/s at its best batch size; grey: fails a gate")


def dropped(results: Path) -> str:
    """Ideas that were tried and dropped, each with the measurement that dropped it; those that were kept are bars."""
    path = results / "step.jsonl"
    found = [row for row in rows.read(path) if row.benchmark in ("step", "branches")] if path.exists() else []
    lines = [f"- **{idea}**: {figure(found, results) or 'not measured yet'}; {why}.\n" for idea, why, figure in DROPPED]
    return (
        "## Ideas that were dropped\n\n"
        "How fast each is as a multiple of what is done in its place; the bars of fair_throughput_ladder.svg are\n"
        "what was kept. From the rows that `run.py step branches` wrote, and two studies.\n\n" + "".join(lines)
    )


def times(found: Sequence[Row], case: str, one: str, other: str) -> str | None:
    """How many times as fast `one` is as `other` in a case: medians paired by round where both ran in one set."""
    chosen = {row.configuration: row for row in found if row.case == case}
    if one not in chosen or other not in chosen:
        return None
    samples = zip(chosen[other].samples_ms, chosen[one].samples_ms, strict=False)
    return f"{statistics.median(theirs / own for theirs, own in samples):.2f}x ({case})"


def two_calls(found: Sequence[Row], configuration: str) -> str | None:
    """Both branches of guidance as two calls, against one batch of two."""
    median = {row.case: row.latency_p50_ms for row in found if row.configuration == configuration}
    if not {"small, one branch", "small, two branches"} <= median.keys():
        return None
    return f"{median['small, two branches'] / (2 * median['small, one branch']):.2f}x (small, batch 1)"


def hoisted(results: Path) -> str | None:
    """What keys and values that are made once save of a call."""
    record = load("hoisting", results)
    saved = [f"{100 * case['saved_share'][1]:.1f} %" for case in record["rows"]] if record else []
    return f"{', '.join(saved)} of a call saved (speed.md)" if saved else None


def on_onnxruntime(precision: str, results: Path) -> str | None:
    """How fast a precision is on ONNX Runtime, as a multiple of fp32."""
    record = load("precision", results)
    if record is None:
        return None
    ratio = next(row["time_ratio"] for row in record["rows"] if row["precision"] == precision)
    return f"{1 / ratio:.2f}x (drift.md)"


# Idea, why it was dropped, and the figure: how fast it is, as a multiple of what is done in its place.
DROPPED: tuple[tuple[str, str, Callable[[Sequence[Row], Path], str | None]], ...] = (
    (
        "OpenVINO with free axes, one compiled graph for all shapes",
        "slower than a graph for each shape",
        lambda found, results: times(found, "digits, batch 32", OPENVINO_FREE.name, OPENVINO.name),
    ),
    (
        "torch.compile in place of eager",
        "less than ONNX Runtime gives, and a compiler on the machine",
        lambda found, results: times(found, "small, batch 16", COMPILED.name, EAGER.name),
    ),
    (
        "bf16 in eager torch",
        "less than OpenVINO gives in bf16",
        lambda found, results: times(found, "small, batch 16", EAGER_BF16.name, EAGER.name),
    ),
    (
        "guidance as two calls, ONNX Runtime",
        "one batch of both branches is used where there is room",
        lambda found, results: two_calls(found, OURS_ORT.name),
    ),
    (
        "guidance as two calls, OpenVINO bf16",
        "one batch of both branches is used where there is room",
        lambda found, results: two_calls(found, OURS_BF16.name),
    ),
    (
        "keys and values made once per prompt, in every bundle",
        "no clear saving on a CPU for 32 times the memory, so it is an option of the export",
        lambda found, results: hoisted(results),
    ),
    (
        "int8 on ONNX Runtime",
        "it computes in float32 between roundings",
        lambda found, results: on_onnxruntime("int8", results),
    ),
    (
        "fp16 on ONNX Runtime",
        "it computes in float32 between roundings",
        lambda found, results: on_onnxruntime("fp16", results),
    ),
)
