"""What serving costs and withstands: the shipped digits bundle on ONNX Runtime, over HTTP on a loopback port.

    python benchmarks/serving.py                     # every part: about 45 minutes
    python benchmarks/serving.py cost peer           # some of it again; the rest stays in the results
    python benchmarks/serving.py soak --seconds 120

- **cold**: from the command to the first image.
- **cost**: a request for one image against the same call of the engine in the same process.
- **throughput**: 16 clients with mixed requests (1 to 16 images, 8 or 25 steps) against the engine at full batches.
- **peer**: 16 clients at our server and at one that runs a request at a time, against what batching gives the engine.
- **overload**: ten times what the server can take for two minutes.
- **soak**: mixed requests for 20 minutes, a quarter of whose clients go away.

Cost, throughput and peer alternate with their baselines, and medians of the rounds count: the machine should be quiet.
A part's figures are written when it is through, with the commit it was measured at.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measured_steps import bar_lines
from serving_parts.closed import cost, peer, throughput
from serving_parts.cold import cold
from serving_parts.overload import overload
from serving_parts.soak import soak

from ddm_rt.engine.machine import processor
from ddm_rt.files import write_atomic, write_json
from ddm_rt.sample.pipeline import Pipeline

PARTS = ("cold", "cost", "throughput", "peer", "overload", "soak")
SIZES = {"n = 1 to 16": (1, 16), "n = 1": (1, 1)}
OUT = Path(__file__).parent / "results" / "serving.json"


def measure(part: str, threads: int, rounds: int, seconds: float | None, work: Path) -> dict[str, Any]:
    if part == "cold":
        return cold(rounds)
    if part == "overload":
        return overload(seconds or 120.0, threads)
    if part == "soak":
        return soak(seconds or 1200.0, threads, work)
    pipeline = Pipeline.load("digits", backend="onnxruntime", threads=threads)
    if part == "cost":
        return cost(pipeline, rounds=4 * rounds)
    if part == "throughput":
        return throughput(pipeline, rounds, seconds or 20.0)
    return {name: peer(pipeline, rounds, seconds or 20.0, sizes) for name, sizes in SIZES.items()}


def bars(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every bar beside its figure; `met` is None where its part wasn't measured."""
    found = []
    for part, label, path, limit, least in (
        ("cold", "first image, s", ("first_image_p50_s",), 3.0, False),
        *(("cost", f"a request of {k} steps, ms", (f"{k} steps", "cost_p50_ms"), 2.0, False) for k in (8, 25)),
        ("throughput", "served over engine", ("served_over_engine",), 0.95, True),
        *(("peer", f"part of the gain of batching, {size}", (size, "part_of_the_gain"), 0.9, True) for size in SIZES),
        *(("peer", f"p95 over one at a time, {size}", (size, "p95_over_one_at_a_time"), 1.0, False) for size in SIZES),
        ("overload", "growth of memory", ("rss_growth",), 0.05, False),
        ("overload", "accepted and late", ("accepted_past_deadline",), 0, False),
        ("soak", "growth of memory", ("rss_growth",), 0.05, False),
    ):
        value: Any = results.get(part)
        for name in path:
            value = None if value is None else value[name]
        met = None if value is None else (value >= limit if least else value <= limit)
        found.append(
            {"bar": f"{part}, {label}: at {'least' if least else 'most'} {limit:g}", "value": value, "met": met}
        )
    return found


def table(results: dict[str, Any]) -> str:
    """The results as markdown."""
    lines = ["# Serving", "", "Written by `benchmarks/serving.py`; what each part does stands there.", ""]
    lines += [*bar_lines(bars(results)), ""]
    for part in PARTS:
        if part in results:
            about = {**results[part]}
            stamp = about.pop("measured")
            lines += [f"## {part}", "", *_rows(about), ""]
            lines += [
                f"`{stamp['command']}`, commit {stamp['commit']}, {stamp['engine_threads']} engine thread(s), "
                f"{stamp['processor']}, {stamp['cpus']} CPUs, load {stamp['load_before']} before; onnxruntime "
                f"{stamp['onnxruntime']}, Python {stamp['python']}.",
                "",
            ]
    return "\n".join(lines)


def _rows(tree: dict[str, Any]) -> list[str]:
    """A table; where every value is a table, one with a column for each."""
    columns = tree if all(isinstance(value, dict) for value in tree.values()) else {"": tree}
    head = [f"| | {' | '.join(columns)} |", "| --- |" + " --- |" * len(columns)]
    names = next(iter(columns.values()))
    return head + [f"| {name} | " + " | ".join(_cell(row[name]) for row in columns.values()) + " |" for name in names]


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace('"', "").strip("{}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--threads", type=int, default=1, help="of the engine; the others are HTTP's and the clients'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of each load; by default what the description says")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    results = json.loads(options.out.read_bytes()) if options.out.is_file() else {}
    for part in options.parts or PARTS:
        load, start = round(os.getloadavg()[0], 2), time.monotonic()
        print(f"{part}…", flush=True)
        with tempfile.TemporaryDirectory() as work:
            figures = measure(part, options.threads, options.rounds, options.seconds, Path(work))
        commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        figures["measured"] = {
            "command": " ".join(["python benchmarks/serving.py", part, *_given(options)]),
            "commit": commit.stdout.strip() or "unknown",
            "seconds": round(time.monotonic() - start),
            "engine_threads": options.threads,
            "processor": processor(),
            "cpus": os.cpu_count(),
            "load_before": load,
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
        }
        results[part] = figures
        write_json(options.out, results)
        write_atomic(options.out.with_suffix(".md"), table(results))
        print(json.dumps(figures, indent=1), flush=True)


def _given(options: argparse.Namespace) -> list[str]:
    """The options that are not the defaults."""
    given = {"threads": (options.threads, 1), "rounds": (options.rounds, 5), "seconds": (options.seconds, None)}
    return [f"--{name} {value:g}" for name, (value, default) in given.items() if value != default]


if __name__ == "__main__":
    main()
