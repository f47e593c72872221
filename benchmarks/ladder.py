"""Ideas for a faster engine that were tried and dropped: one line each, with the figure that dropped it.

    python benchmarks/ladder.py --rows step.jsonl      # rows of `run.py step branches`

Ideas that were kept are the bars of results/fair_throughput_ladder.svg. Each line is read from a measurement that is
kept here, so that it changes when that is made again; an idea without its measurement is listed as such.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_parts import rows
from bench_parts.rows import Row
from registry import COMPILED, EAGER, EAGER_BF16, OPENVINO, OPENVINO_FREE, OURS_BF16, OURS_ORT

from ddm_rt.errors import DdmError
from ddm_rt.files import write_atomic

RESULTS = Path(__file__).parent / "results"


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


def hoisted() -> str:
    cases = json.loads((RESULTS / "hoisting.json").read_text())["cases"]
    saved = [f"{100 * case['saved_share'][1]:.1f} %" for case in cases]
    return f"{', '.join(saved)} of a call saved (hoisting.md)"


def rounded(precision: str) -> str:
    table: list[dict[str, Any]] = json.loads((RESULTS / "precision.json").read_text())["rows"]
    ratio = next(row["time_ratio"] for row in table if row["precision"] == precision)
    return f"{1 / ratio:.2f}x (precision.md)"


# Idea, why it was dropped, and the figure: how fast it is, as a multiple of what is done in its place.
DROPPED: tuple[tuple[str, str, Callable[[Sequence[Row]], str | None]], ...] = (
    (
        "OpenVINO with free axes, one compiled graph for all shapes",
        "slower than a graph for each shape",
        lambda found: times(found, "digits, batch 32", OPENVINO_FREE.name, OPENVINO.name),
    ),
    (
        "torch.compile in place of eager",
        "less than ONNX Runtime gives, and a compiler on the machine",
        lambda found: times(found, "small, batch 16", COMPILED.name, EAGER.name),
    ),
    (
        "bf16 in eager torch",
        "less than OpenVINO gives in bf16",
        lambda found: times(found, "small, batch 16", EAGER_BF16.name, EAGER.name),
    ),
    (
        "guidance as two calls, ONNX Runtime",
        "one batch of both branches is used where there is room",
        lambda found: two_calls(found, OURS_ORT.name),
    ),
    (
        "guidance as two calls, OpenVINO bf16",
        "one batch of both branches is used where there is room",
        lambda found: two_calls(found, OURS_BF16.name),
    ),
    (
        "keys and values made once per prompt",
        "a few parts in a hundred for 50 times the memory",
        lambda found: hoisted(),
    ),
    ("int8 on ONNX Runtime", "it computes in float32 between roundings", lambda found: rounded("int8")),
    ("fp16 on ONNX Runtime", "it computes in float32 between roundings", lambda found: rounded("fp16")),
)


def markdown(found: Sequence[Row]) -> str:
    lines = [f"- **{idea}**: {figure(found) or 'not measured yet'}; {why}." for idea, why, figure in DROPPED]
    return "\n".join(
        [
            "# Ideas that were dropped",
            "",
            "How fast each is as a multiple of what is done in its place; the bars of fair_throughput_ladder.svg are",
            "what was kept. `python benchmarks/ladder.py --rows ROWS`, of rows that `run.py step branches` wrote.",
            "",
            *lines,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=RESULTS / "ladder_dropped.md")
    arguments = parser.parse_args()
    try:
        page = markdown(rows.read(arguments.rows))
    except (DdmError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_atomic(arguments.out, page)
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
