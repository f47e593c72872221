"""The one schema of a result: JSON lines for machines, and the same rows as a markdown table for people."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from store import rounded, table

from ddm_rt.config import Frozen, parse_json
from ddm_rt.engine.machine import Machine
from ddm_rt.files import write_atomic


class Row(Frozen):
    """One configuration in one case. Ratios are paired by round with the baseline of the same run."""

    schema_version: int = 1
    benchmark: str
    case: str
    configuration: str
    precision: str
    baseline: str
    batch: int
    threads: int
    samples_ms: tuple[float, ...]  # of a call, round by round; round i of every configuration ran side by side
    latency_p25_ms: float
    latency_p50_ms: float
    latency_p75_ms: float
    first_call_ms: float  # what opens the model included: cold
    images_per_s: float | None  # of whole images; None where the call is one denoiser step
    speedup: float  # median of baseline over own; above 1 is faster
    speedup_range: tuple[float, float]  # quartiles
    gflop: float | None  # of one call
    gflop_per_s: float | None
    peak_share: float | None  # of what large matrix products of that precision reach here
    peak_mem_mib: float  # resident, of the process that ran this configuration alone
    error: float | None  # RMS of the output against the baseline's, over its own RMS
    machine: Machine
    versions: dict[str, str]
    commit: str
    command: str
    tests: tuple[str, ...]  # that passed before
    when: str  # UTC


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def read(path: Path) -> list[Row]:
    """Rows of a file. Raises DdmError naming the first line that isn't one."""
    lines = path.read_text().splitlines()
    return [parse_json(Row, line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def append(path: Path, rows: Sequence[Row]) -> None:
    """The file with these rows after those that it has."""
    before = path.read_text() if path.exists() else ""
    write_atomic(path, before + "".join(f"{kept(row).model_dump_json()}\n" for row in rows))


def kept(row: Row) -> Row:
    """The row with numbers as files have them: rounded to 5 digits, samples to 4."""
    tree = rounded(row.model_dump())
    return Row.model_validate(tree | {"samples_ms": rounded(row.samples_ms, 4)})


def markdown(rows: Sequence[Row]) -> str:
    """A table for each case, and below it what it was measured on."""
    parts = []
    for benchmark, case in dict.fromkeys((row.benchmark, row.case) for row in rows):
        chosen = [row for row in rows if (row.benchmark, row.case) == (benchmark, case)]
        parts += [f"## {benchmark}: {case}", "", _table(chosen), _footnote(chosen[0]), ""]
    return "\n".join(parts)


def _table(rows: Sequence[Row]) -> str:
    columns = ("configuration", "precision", "ms, median [quartiles]", f"times {rows[0].baseline} [quartiles]")
    more = ("images/s", "GFLOP/s (of peak)", "first call, ms", "peak MiB", "error")
    return table((*columns, *more), map(_cells, rows))


def _cells(row: Row) -> list[str]:
    share = "" if row.peak_share is None else f" ({row.peak_share:.0%})"
    return [
        row.configuration,
        row.precision,
        f"{row.latency_p50_ms:.4g} [{row.latency_p25_ms:.4g}, {row.latency_p75_ms:.4g}]",
        f"{row.speedup:.2f} [{row.speedup_range[0]:.2f}, {row.speedup_range[1]:.2f}]",
        "" if row.images_per_s is None else f"{row.images_per_s:.3g}",
        "" if row.gflop_per_s is None else f"{row.gflop_per_s:.0f}{share}",
        f"{row.first_call_ms:.0f}",
        f"{row.peak_mem_mib:.0f}",
        "" if row.error is None else f"{row.error:.1e}",
    ]


def _footnote(row: Row) -> str:
    machine = row.machine
    versions = ", ".join(f"{name} {number}" for name, number in row.versions.items())
    return (
        f"{len(row.samples_ms)} interleaved rounds, {row.threads} threads, {machine.processor} ({machine.cpus} CPUs, "
        f"load average {machine.load_average}), {versions}, commit {row.commit}, {row.when}; `{row.command}`"
    )


def write_markdown(path: Path) -> None:
    """The table of a file of rows, beside it."""
    write_atomic(path.with_suffix(".md"), markdown(read(path)))
