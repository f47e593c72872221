"""What `ddm-rt compare` says of faster configurations of the shipped digits bundle, on one thread of this machine.

    python benchmarks/drift.py --work DIR               # what is missing; DIR keeps converted and trained bundles
    python benchmarks/drift.py --work DIR --again NAME  # one row anew

n pairs with the same seeds and codes for each row: precisions, step counts, samplers, a backend, and two faults that
were planted. The torch backend needs weights, which the shipped bundle holds in its graphs alone, so that row compares
the two backends on a bundle of the same data trained for 600 steps (preset `digits-demo`, trained here where DIR has
none). Rows are kept in results/drift.jsonl as they come; one with another n or bundle is made again.
"""

import argparse
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import render
from measured_steps import commit
from store import RESULTS, load, save

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.machine import processor
from ddm_rt.evaluate.comparison.compare import compare
from ddm_rt.evaluate.comparison.sides import parse_side
from ddm_rt.evaluate.judge import Judge
from ddm_rt.presets import resolve
from ddm_rt.workflows.export import export

GROUPS, REFERENCE = ("3", "8"), "digits:3,8"
TRAINED = "trained"  # the bundle with weights

# Row -> A and B; {fp16} and the like are bundles in the work directory.
ROWS: dict[str, tuple[str, str]] = {
    "fp32 to fp16": ("digits", "{fp16}"),
    "fp32 to int8": ("digits", "{int8}"),
    "25 to 8 steps": ("digits", "digits@steps=8"),
    "25 to 4 steps": ("digits", "digits@steps=4"),
    "25 to 2 steps": ("digits", "digits@steps=2"),
    "DDIM, 25 to DPM-Solver++(2M), 8": ("digits", "digits@steps=8,sampler=dpm++2m"),
    "fp32, 25 to int8, 4": ("digits", "{int8}@steps=4"),
    "planted: no guidance on the code": ("digits", "digits@guidance=0"),
    "planted: guidance 6 instead of 1.5": ("digits", "digits@guidance=6"),
    "torch to ONNX Runtime": (f"{{{TRAINED}}}@backend=torch", f"{{{TRAINED}}}@backend=onnxruntime"),
}


def place(name: str, work: Path) -> Path:
    """The bundle of that name, made where it isn't there."""
    path = work / name
    if path.exists():
        return path
    if name != TRAINED:
        export("digits", path, Precision(name))
        return path
    from ddm_rt.export.run import export_run
    from ddm_rt.train.run import train

    if not (work / "run" / "weights.safetensors").exists():
        train(resolve("digits-demo"), work / "run")
    export_run(work / "run", path)
    return path


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    names = [text.partition("}")[0][1:] for text in ROWS[name] if text.startswith("{")]
    places = {bundle: place(bundle, arguments.work) for bundle in names}
    sides = [parse_side(text.format(**places), threads=1) for text in ROWS[name]]
    figures, _ = compare(
        *sides, judge=Judge.load("digits"), groups=GROUPS, reference=REFERENCE, n=arguments.n, seed=arguments.seed
    )
    found = figures.model_dump(mode="json", exclude={"schema_version", "seed", "groups", "reference", "judge"})
    for side, text in zip("ab", ROWS[name], strict=True):
        found[side]["label"] = text.replace("{", "").replace("}", "")
    return {"row": name, **found}


def key(arguments: argparse.Namespace) -> dict[str, Any]:
    """What a row kept from before must have been made with."""
    return {
        "n": arguments.n,
        "seed": arguments.seed,
        "bundle_id": Bundle.load("digits").bundle_id,
        "judge": Judge.load("digits").sha256,
        "groups": list(GROUPS),
        "reference": REFERENCE,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps converted and trained bundles")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", nargs="*", default=[], choices=list(ROWS), help="rows to make again")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of drift.jsonl and drift.md")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = {}
    before = load("drift", arguments.results)
    if before and all(before[name] == value for name, value in key(arguments).items()):
        kept = {row["row"]: row for row in before["rows"]}
    for name in ROWS:
        if name in kept and name not in arguments.again:
            continue
        start = time.perf_counter()
        kept[name] = measure(name, arguments)
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
        result = key(arguments) | {
            "command": "python benchmarks/drift.py --work DIR",
            "machine": f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} CPUs",
            "load_average": os.getloadavg(),
            "versions": {package: version(package) for package in ("onnxruntime", "torch", "numpy")},
            "commit": commit(),
            "rows": [kept[row] for row in ROWS if row in kept],
        }
        save("drift", result, arguments.results)
    print(render.render("drift", arguments.results))


if __name__ == "__main__":
    main()
