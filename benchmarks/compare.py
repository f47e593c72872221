"""Two files of rows against each other: the same cases and configurations, before and after.

    python benchmarks/compare.py BEFORE.jsonl AFTER.jsonl [--slower 0.05]

What is compared is the speed-up over the baseline of the same run, so that a busier hour or another machine falls
out as far as it can. Exit code 1: a configuration lost more than `--slower`, and the quartiles don't overlap.
"""

import argparse
import sys
from pathlib import Path

from bench_parts import rows
from bench_parts.rows import Row

from ddm_rt.errors import DdmError

Key = tuple[str, str, str, int]


def keyed(found: list[Row]) -> dict[Key, Row]:
    """The last row of each configuration."""
    return {(row.benchmark, row.case, row.configuration, row.threads): row for row in found}


def is_slower(before: Row, after: Row, limit: float) -> bool:
    """Lost more than `limit` of its speed-up, beyond both spreads."""
    lost = after.speedup < (1 - limit) * before.speedup
    return lost and after.speedup_range[1] < before.speedup_range[0]


def table(before: dict[Key, Row], after: dict[Key, Row], limit: float) -> str:
    lines = [
        "| case | configuration | times the baseline, before | after | change | ms, before | after | |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for key, old in before.items():
        if (new := after.get(key)) is None:
            continue
        change = new.speedup / old.speedup - 1
        word = "slower" if is_slower(old, new, limit) else "faster" if is_slower(new, old, limit) else ""
        lines.append(
            f"| {old.case} | {old.configuration} "
            f"| {old.speedup:.2f} [{old.speedup_range[0]:.2f}, {old.speedup_range[1]:.2f}] "
            f"| {new.speedup:.2f} [{new.speedup_range[0]:.2f}, {new.speedup_range[1]:.2f}] "
            f"| {change:+.1%} | {old.latency_p50_ms:.4g} | {new.latency_p50_ms:.4g} | {word} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--slower", type=float, default=0.05, help="share of a speed-up that may be lost")
    arguments = parser.parse_args()
    try:
        before, after = (keyed(rows.read(path)) for path in (arguments.before, arguments.after))
        shared = [key for key in before if key in after]
        if not shared:
            raise DdmError(f"{arguments.before} and {arguments.after} have no configuration in common")
    except (DdmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(before, after, arguments.slower))
    machines = {before[key].machine.processor for key in shared} | {after[key].machine.processor for key in shared}
    if len(machines) > 1:
        print(f"\nmeasured on different processors: {', '.join(sorted(machines))}")
    return int(any(is_slower(before[key], after[key], arguments.slower) for key in shared))


if __name__ == "__main__":
    sys.exit(main())
