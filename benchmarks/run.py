"""Run registered benchmarks: JSON lines and a markdown table, both of one schema.

    python benchmarks/run.py --list
    python benchmarks/run.py step --work DIR --out step.jsonl [--rounds 5] [--only digits]

Nothing is timed unless the tests of what is measured pass. Every configuration has a process of its own, warmed up;
calls go round by round over all configurations of a set, so that what else happens on the machine meets all of them.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import registry
from bench_parts import rows
from bench_parts.peak import gflop, peak_gflop_per_s
from bench_parts.rows import Row
from bench_parts.workers import Timed, side_by_side
from measured_steps import commit
from registry import BENCHMARKS, Case
from subjects import SUBJECTS, Subject

from ddm_rt.engine.contract import usable_cores
from ddm_rt.engine.machine import machine
from ddm_rt.errors import DdmError

ROOT = Path(__file__).parents[1]
BARE = {"eager", "compiled", "tuned"}  # peers that run a checkpoint as diffusers has it


def check_tests(tests: Sequence[str]) -> None:
    """Raises DdmError with the last lines unless all of them pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", "not slow", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        tail = " / ".join(done.stdout.strip().splitlines()[-4:])
        raise DdmError(f"nothing is timed: {' '.join(tests)} don't pass: {tail}")


def measure(name: str, case: Case, subject: Subject, threads: int, rounds: int, command: str) -> list[Row]:
    """Rows of one case, the baseline's first; configurations that stand in several sets have the first one's row."""
    found: dict[str, Row] = {}
    work = gflop(subject, case.call.batch, case.call.side) if case.call.kind == "step" else None
    for configurations in case.sets:
        timed = side_by_side([(each, subject) for each in configurations], threads, case.call, rounds)
        for each in timed:
            if each.configuration.name not in found:
                error = None if case.call.kind == "train" else _error(subject, each, timed[0])
                row = _row(name, case, each, timed[0], threads, work, command, error)
                found[row.configuration] = row
                print(f"{case.name}: {row.configuration} {row.latency_p50_ms:.4g} ms, {row.speedup:.2f}x", flush=True)
    return list(found.values())


def _row(
    name: str,
    case: Case,
    timed: Timed,
    baseline: Timed,
    threads: int,
    work: float | None,
    command: str,
    error: float | None,
) -> Row:
    low, middle, high = rows.quartiles(timed.samples_ms)
    ratios = [theirs / own for theirs, own in zip(baseline.samples_ms, timed.samples_ms, strict=True)]
    slowest, speedup, fastest = rows.quartiles(ratios)
    rate = None if work is None else work / middle * 1000
    peak = None if rate is None else peak_gflop_per_s(timed.configuration.precision, threads)
    return Row(
        benchmark=name,
        case=case.name,
        configuration=timed.configuration.name,
        precision=timed.configuration.precision,
        baseline=baseline.configuration.name,
        batch=case.call.batch,
        threads=threads,
        samples_ms=tuple(round(value, 4) for value in timed.samples_ms),
        latency_p25_ms=low,
        latency_p50_ms=middle,
        latency_p75_ms=high,
        first_call_ms=timed.first_call_ms,
        images_per_s=case.call.batch / middle * 1000 if case.call.kind == "images" else None,
        speedup=speedup,
        speedup_range=(slowest, fastest),
        gflop=work,
        gflop_per_s=rate,
        peak_share=None if rate is None or peak is None else rate / peak,
        peak_mem_mib=timed.peak_mem_mib,
        error=error,
        machine=machine(),
        versions=timed.versions,
        commit=commit(),
        command=command,
        tests=BENCHMARKS[name].tests,
        when=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _error(subject: Subject, timed: Timed, baseline: Timed) -> float | None:
    """Relative root mean square of the first output; None where the two don't compute the same function, or draw."""
    found, expected = timed.output, baseline.output
    bare = {each.configuration.peer in BARE for each in (timed, baseline)}  # of a checkpoint: without the indicator
    if timed is baseline or found.shape != expected.shape or (subject.checkpoint is not None and len(bare) > 1):
        return None
    return float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--list", action="store_true", help="what there is")
    parser.add_argument("--work", type=Path, help="keeps the models")
    parser.add_argument("--out", type=Path, help="JSON lines, appended to; the table lies beside it as .md")
    parser.add_argument("--only", help="cases whose name holds this")
    parser.add_argument("--rounds", type=int, help="in place of the case's own")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--scale", type=float, default=1.0, help="of sd15's parameters, to try a run out")
    arguments = parser.parse_args()
    if arguments.list:
        for name, benchmark in registry.BENCHMARKS.items():
            print(f"{name}: {benchmark.what}; cases: {'; '.join(case.name for case in benchmark.cases)}")
        return 0
    try:
        if unknown := [name for name in arguments.names if name not in BENCHMARKS]:
            raise DdmError(f"benchmark {unknown[0]!r} is unknown; there are: {', '.join(BENCHMARKS)}")
        if not arguments.names or arguments.work is None or arguments.out is None:
            raise DdmError("expected NAME..., --work and --out, or --list")
        options = [f"--only {arguments.only!r}"] if arguments.only else []
        options += [f"--scale {arguments.scale:g}"] if arguments.scale != 1 else []
        command = " ".join(["python benchmarks/run.py", *arguments.names, *options])
        for name in arguments.names:
            check_tests(BENCHMARKS[name].tests)
            for case in BENCHMARKS[name].cases:
                if arguments.only is None or arguments.only in case.name:
                    subject = SUBJECTS[case.subject](arguments.work, arguments.scale)
                    rounds = arguments.rounds or case.rounds
                    made = measure(name, case, subject, arguments.threads, rounds, command)
                    rows.append(arguments.out, made)
                    rows.write_markdown(arguments.out)
    except DdmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(arguments.out.with_suffix(".md").read_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
