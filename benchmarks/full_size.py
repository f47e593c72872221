"""Stable Diffusion 1.5's size without a GPU: the three graphs exported, converted to fp16 and built for SM89.

    python benchmarks/full_size.py --work DIR [--scale 1.0] [--force]

UNet (with the indicator in its 16 cross-attention layers), VAE decoder and text encoder with random weights;
TensorRT-RTX, strongly typed, dynamic batch 1 to 8 at 64x64 latents. Every step runs in a process of its own: wall time,
CPU time and peak resident memory are that process's and its children's. A step whose result exists for the same
versions and settings is not run again. Exit code 1 says that a bar is not met; bars count at full size only.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ddm_rt.bundle import write_atomic, write_json
from ddm_rt.errors import DdmError

GIB = 2**30
PARTS = ("text_encoder", "vae_decoder", "unet")
STEPS = ("export", "convert", "build")
FILES = {"export": "{}.fp32.onnx", "convert": "{}.onnx", "build": "{}.plan"}  # what each step leaves
RESULTS = Path(__file__).parent / "results" / "full_size.json"
DISK_GIB = 8.0  # graphs with external data and plans, at scale 1
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "tensorrt-rtx")

# (part or None for every part, step, figure, limit, unit)
BARS: tuple[tuple[str | None, str, str, float, str], ...] = (
    ("unet", "build", "wall_s", 180.0, "s"),
    (None, "export", "peak_rss_gib", 12.0, "GiB"),
    (None, "convert", "peak_rss_gib", 12.0, "GiB"),
    (None, "build", "peak_rss_gib", 8.0, "GiB"),
)


def check_disk(work: Path, scale: float) -> None:
    """Says how much room the run needs, and raises DdmError where `work` has less."""
    need = DISK_GIB * max(scale, 0.05)
    free = shutil.disk_usage(work).free / GIB
    print(f"needs about {need:.1f} GiB in {work.name}; {free:.1f} GiB are free", flush=True)
    if free < need:
        raise DdmError(f"--work {work}: {free:.1f} GiB free; about {need:.1f} GiB are needed at scale {scale:g}")


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


def bars(steps: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every bar beside its figure, the worst one where it covers several parts; `met` None where none was measured."""
    found = []
    for part, step, figure, limit, unit in BARS:
        names = [f"{name}.{step}" for name in PARTS if part in (None, name)]
        values = [steps[name][figure] for name in names if name in steps]
        whole = len(values) == len(names)
        found.append(
            {
                "bar": f"{part or 'every part'}, {step}: {figure} at most {limit:g} {unit}",
                "value": max(values) if whole else None,
                "met": max(values) <= limit if whole else None,
            }
        )
    return found


def markdown(results: dict[str, Any]) -> str:
    """The results as a page."""
    words = {True: "met", False: "NOT MET", None: "not measured"}
    rows = [
        f"| {name.replace('.', ', ')} | {r['wall_s']:.1f} | {r['cpu_s']:.1f} | {r['peak_rss_gib']:.2f} | "
        f"{r['bytes'] / 1e6:,.0f} | {r['load_before']:.1f} to {r['load_after']:.1f} | "
        + ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in r["seconds"].items())
        + f" | {r['commit']} |"
        for name, r in results["steps"].items()
    ]
    parameters = ", ".join(
        f"{name.split('.')[0]} {r['parameters'] / 1e6:,.1f} M"
        for name, r in results["steps"].items()
        if "parameters" in r
    )
    return "\n".join(
        [
            "# Full size without a GPU",
            "",
            f"`{results['command']}` on {results['machine']}; {results['settings']}.",
            f"Random weights: {parameters}. Versions: "
            + ", ".join(f"{name} {number}" for name, number in results["versions"].items())
            + ".",
            "",
            "| step | wall s | CPU s | peak GiB | MB written | load average | seconds by phase | commit |",
            "| --- | ---: | ---: | ---: | ---: | --- | --- | --- |",
            *rows,
            "",
            *(
                f"- {bar['bar']}: {'-' if bar['value'] is None else format(bar['value'], '.2f')}, {words[bar['met']]}"
                for bar in results["bars"]
            ),
            "",
            "Load average is the machine's before and after the step: above 0 before it, others shared the cores.",
            "A build proves that the graph is accepted and compiled; nothing here ran on a GPU.",
            "",
        ]
    )


def needed(part: str, steps: dict[str, Any], work: Path) -> set[str]:
    """Steps without a result, and those whose file is gone that the next one reads."""
    found: set[str] = set()
    wanted = False
    for step in reversed(STEPS):
        gone = not (work / FILES[step].format(part)).exists()
        wanted = f"{part}.{step}" not in steps or (wanted and gone)
        if wanted:
            found.add(step)
    return found


def run(
    work: Path, results: Path, scale: float, sm: str, parts: list[str], force: bool, threads: int
) -> dict[str, Any]:
    """Every step that has no result yet, each recorded as it ends."""
    work.mkdir(parents=True, exist_ok=True)
    check_disk(work, scale)
    settings = f"scale {scale:g}, float16, sm_{sm}, batch 1 to 8, {threads} threads"
    versions = {name: version(name) for name in PACKAGES}
    kept = json.loads(results.read_text()) if results.exists() else {}
    same = kept.get("settings") == settings and kept.get("versions") == versions and not force
    steps: dict[str, dict[str, Any]] = kept["steps"] if same else {}
    tree: dict[str, Any] = {
        "command": f"python benchmarks/full_size.py --work DIR --scale {scale:g}",
        "settings": settings,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, {_memory_gib():.0f} GiB",
        "versions": versions,
        "steps": steps,
    }
    worker = Path(__file__).with_name("full_size_worker.py")
    for part in parts:
        todo = needed(part, steps, work)
        for step in STEPS:
            name = f"{part}.{step}"
            if step not in todo:
                print(f"{name}: kept", flush=True)
                continue
            print(f"{name}: started", flush=True)
            options = {"--work": work, "--scale": scale, "--sm": sm, "--threads": threads}
            command = [sys.executable, str(worker), step, part]
            figures = measure([*command, *(str(x) for pair in options.items() for x in pair)], name)
            facts = json.loads((work / f"{name}.json").read_text())
            steps[name] = figures | facts | {"commit": _commit()}
            tree["bars"] = bars(steps)
            write_json(results, tree)
            write_atomic(results.with_suffix(".md"), markdown(tree))
            print(f"{name}: {figures['wall_s']:.1f} s, {figures['peak_rss_gib']:.2f} GiB resident", flush=True)
    return tree


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for graphs and plans: 8 GiB at scale 1")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of parameters, 0 < scale <= 1")
    parser.add_argument("--sm", default="89", help="architecture of the builds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, help=f"default at scale 1: {RESULTS.name} in benchmarks/results")
    parser.add_argument("--force", action="store_true", help="run steps again that have a result")
    a = parser.parse_args()
    try:
        if not 0 < a.scale <= 1:
            raise DdmError(f"--scale is {a.scale:g}; expected more than 0 and at most 1")
        results = a.results or (RESULTS if a.scale == 1 else a.work / RESULTS.name)
        tree = run(a.work, results, a.scale, a.sm, a.parts, a.force, a.threads)
    except DdmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for bar in tree.get("bars", bars(tree["steps"])):
        print(f"{bar['bar']}: {bar['value']} ({bar['met']})")
    return int(a.scale == 1 and any(bar["met"] is False for bar in bars(tree["steps"])))


if __name__ == "__main__":
    sys.exit(main())
