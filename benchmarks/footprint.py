"""What the product weighs: the import, a serving installation, and the first image of a new process.

    python benchmarks/footprint.py [--rounds 11]

Sizes are those of the files of the distributions that `pip install ddm-rt` and its extra `serve` bring here, as their
own records list them, so nothing is installed for it. Times are of new processes; their median counts.
"""

import argparse
import statistics
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import render
from measured_steps import commit
from packaging.requirements import Requirement
from store import RESULTS, rounded, save

from ddm_rt.engine.machine import machine
from ddm_rt.evaluate.comparison.sides import parse_side
from ddm_rt.evaluate.latency import first_image

_IMPORT = "import time; start = time.perf_counter(); import ddm_rt; print(time.perf_counter() - start)"


def closure(name: str, extras: frozenset[str] = frozenset()) -> set[str]:
    """The distribution and all that it needs here with these extras, by name."""
    found: set[str] = set()
    todo = [(name, extras)]
    seen = set()
    while todo:
        current, wanted = todo.pop()
        if (current, wanted) in seen:
            continue
        seen.add((current, wanted))
        found.add(current)
        for text in distribution(current).requires or ():
            needed = Requirement(text)
            environments = [{"extra": extra} for extra in ("", *wanted)]
            if needed.marker is None or any(needed.marker.evaluate(each) for each in environments):
                todo.append((needed.name.lower().replace("_", "-"), frozenset(needed.extras)))
    return found


def megabytes(names: set[str]) -> float:
    """Files of these distributions together, in MB (a million bytes); those of an editable one are counted below."""
    size = 0
    for name in names:
        for file in distribution(name).files or ():
            path = Path(str(file.locate()))
            if path.is_file() and path.suffix != ".pyc":
                size += path.stat().st_size
    return (size + _own_bytes()) / 1e6


def _own_bytes() -> int:
    """The package's own files, which an editable installation doesn't list."""
    root = Path(__file__).parents[1]
    files = [path for folder in ("ddm_rt", "kernels") for path in (root / folder).rglob("*")]
    return sum(path.stat().st_size for path in files if path.is_file() and path.suffix != ".pyc")


def import_seconds() -> float:
    """Of `import ddm_rt` in a new process, without the interpreter's own start."""
    command = [sys.executable, "-P", "-c", _IMPORT]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of speed.jsonl and speed.md")
    arguments = parser.parse_args()
    stamp = machine().model_dump()
    serving = closure("ddm-rt", frozenset({"serve"}))
    side = parse_side("digits")
    taken = {
        "import_s": [import_seconds() for _ in range(arguments.rounds)],
        "first_image_s": [first_image(side) for _ in range(arguments.rounds)],
    }
    result: dict[str, Any] = {
        name: {"median": statistics.median(values), "samples": rounded(values, 4)} for name, values in taken.items()
    }
    result |= {
        "serving_mb": megabytes(serving),
        "serving_distributions": sorted(serving),
        "base_mb": megabytes(closure("ddm-rt")),
        "rounds": arguments.rounds,
        "machine": stamp,
        "commit": commit(),
    }
    save("footprint", result, arguments.results)
    print(render.render("speed", arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
