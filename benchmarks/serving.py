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
- **faults**: 64 clients for ten minutes, some of whom go away, while the ledger's disk is full at times and replicas
  are killed. It needs Ray.

Cost, throughput and peer alternate with their baselines, and medians of the rounds count: the machine should be quiet.
A part's figures are written when it is through, with the commit it was measured at.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import render
from measured_steps import commit
from serving_parts.closed import cost, peer, throughput
from serving_parts.cold import cold
from serving_parts.faults import faults
from serving_parts.overload import overload
from serving_parts.soak import soak
from store import RESULTS, load, save

from ddm_rt.engine.machine import processor
from ddm_rt.sample.pipeline import Pipeline

PARTS = ("cold", "cost", "throughput", "peer", "overload", "soak", "faults")
SIZES = {"n = 1 to 16": (1, 16), "n = 1": (1, 1)}


def measure(part: str, threads: int, rounds: int, seconds: float | None, work: Path) -> dict[str, Any]:
    if part == "cold":
        return cold(rounds)
    if part == "overload":
        return overload(seconds or 120.0, threads)
    if part == "soak":
        return soak(seconds or 1200.0, threads, work)
    if part == "faults":
        return faults(seconds or 600.0, threads, work, replicas=2)
    pipeline = Pipeline.load("digits", backend="onnxruntime", threads=threads)
    if part == "cost":
        return cost(pipeline, rounds=4 * rounds)
    if part == "throughput":
        return throughput(pipeline, rounds, seconds or 20.0)
    return {name: peer(pipeline, rounds, seconds or 20.0, sizes) for name, sizes in SIZES.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], default=[])
    parser.add_argument("--threads", type=int, default=1, help="of the engine; the others are HTTP's and the clients'")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, help="of each load; by default what the description says")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of serving.jsonl and serving.md")
    options = parser.parse_args(arguments)
    record = load("serving", options.results) or {"rows": []}
    parts = {row["part"]: row for row in record["rows"]}
    for part in options.parts or PARTS:
        load_before, start = round(os.getloadavg()[0], 2), time.monotonic()
        print(f"{part}…", flush=True)
        with tempfile.TemporaryDirectory() as work:
            figures = measure(part, options.threads, options.rounds, options.seconds, Path(work))
        figures["measured"] = {
            "command": " ".join(["python benchmarks/serving.py", part, *_given(options)]),
            "commit": commit(),
            "seconds": round(time.monotonic() - start),
            "engine_threads": options.threads,
            "processor": processor(),
            "cpus": os.cpu_count(),
            "load_before": load_before,
            "onnxruntime": version("onnxruntime"),
            "python": platform.python_version(),
        }
        parts[part] = {"part": part, **figures}
        save("serving", {"rows": [parts[name] for name in PARTS if name in parts]}, options.results)
        render.render("serving", options.results)
        print(json.dumps(figures, indent=1), flush=True)


def _given(options: argparse.Namespace) -> list[str]:
    """The options that are not the defaults."""
    given = {"threads": (options.threads, 1), "rounds": (options.rounds, 5), "seconds": (options.seconds, None)}
    return [f"--{name} {value:g}" for name, (value, default) in given.items() if value != default]


if __name__ == "__main__":
    main()
