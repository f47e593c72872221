"""Steps of a benchmark, each in a process of its own: measured, held against bars, and not run twice."""

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddm_rt.errors import DdmError

GIB = 2**30


@dataclass(frozen=True)
class Bar:
    """A limit on one figure of some steps: the worst of them counts."""

    label: str
    steps: tuple[str, ...]
    figure: str
    limit: float
    unit: str


def check_disk(work: Path, need_gib: float, scale: float) -> None:
    """Says how much room a run at `scale` needs, and raises DdmError where `work` has less."""
    free = shutil.disk_usage(work).free / GIB
    print(f"needs about {need_gib:.1f} GiB in {work.name}; {free:.1f} GiB are free", flush=True)
    if free < need_gib:
        raise DdmError(f"--work {work}: {free:.1f} GiB free; about {need_gib:.1f} GiB are needed at scale {scale:g}")


def measure(command: list[str], label: str) -> dict[str, float]:
    """Run one step to its end: seconds, peak memory (its children's included) and the load it ran beside.

    Raises DdmError with the last lines of its output where it fails or is killed.
    """
    before, start = os.getloadavg()[0], time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    tail: list[str] = []
    try:
        for line in process.stdout:
            tail = [*tail[-9:], line.rstrip()]
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode != 0:
        raise DdmError(f"{label}: exit code {process.returncode}; its last lines: {' / '.join(tail) or '(none)'}")
    return {
        "wall_s": round(time.perf_counter() - start, 2),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_rss_gib": round(usage.ru_maxrss * 1024 / GIB, 3),
        "load_before": round(before, 2),
        "load_after": round(os.getloadavg()[0], 2),
    }


def needed(chain: Mapping[str, Path], results: Mapping[str, Any]) -> set[str]:
    """Of a chain of steps, each with what it leaves for the next: those without a result, and those whose
    leavings are gone that a later one reads."""
    found: set[str] = set()
    wanted = False
    for step, left in reversed(chain.items()):
        wanted = step not in results or (wanted and not left.exists())
        if wanted:
            found.add(step)
    return found


def held(bars: Iterable[Bar], results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every bar beside its figure; `met` is None where one of its steps wasn't measured."""
    found = []
    for bar in bars:
        values = [results[step][bar.figure] for step in bar.steps if step in results]
        whole = len(values) == len(bar.steps)
        found.append(
            {
                "bar": f"{bar.label}: {bar.figure} at most {bar.limit:g} {bar.unit}",
                "value": max(values) if whole else None,
                "met": max(values) <= bar.limit if whole else None,
            }
        )
    return found


def bar_lines(found: Iterable[Mapping[str, Any]]) -> list[str]:
    """`held`'s findings as a list in markdown."""
    words = {True: "met", False: "NOT MET", None: "not measured"}
    return [
        f"- {bar['bar']}: {'-' if bar['value'] is None else format(bar['value'], '.2f')}, {words[bar['met']]}"
        for bar in found
    ]


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GiB"


def commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
