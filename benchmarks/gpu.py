"""Everything about a GPU that only a GPU can show, in one command of at most 8 minutes.

    python benchmarks/gpu.py --out DIR [--sections numerics,attention] [--dry-run]

Needs a CUDA device, torch, triton and numpy, and this checkout or an installed ddm_rt; uses diffusers, ONNX Runtime and
TensorRT where they are installed and lists what is missing. Each section runs in a process of its own within its time
budget, so that one that crashes or hangs takes nothing with it. DIR gets gpu.json (after every section), gpu.md and one
JSON file per section. Exit code 0: every bar that was measured is met; 1: one is not, or a section failed; 2: nothing
could run, and nothing is written.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gpu_parts import checkout, machine, summary
from gpu_parts.record import Record, write, write_json

LIMIT_S = 480.0  # of the whole run
START_S = 12.0  # of a section's process beyond its budget: imports, the CUDA context, the last row


@dataclass(frozen=True)
class Section:
    """A function `record -> None` and the seconds that it may take."""

    where: str  # "module:function"
    budget_s: float
    shows: str


# In the order of what matters most if the run is cut short.
SECTIONS: dict[str, Section] = {
    "numerics": Section("gpu_parts.numerics:section_numerics", 60, "both kernels against float64; batch invariance"),
    "races": Section("gpu_parts.numerics:section_races", 25, "50 repeats beside other work, bit by bit"),
    "attention": Section(
        "gpu_parts.attention_speed:section_attention", 60, "fused, unfused, flash, copy: SD 1.5's layers"
    ),
    "unet_step": Section("gpu_parts.unet_speed:section_unet_step", 85, "a step with and without the indicator"),
    "throughput": Section("gpu_parts.unet_speed:section_throughput", 70, "images/s over batches, fraction of the peak"),
    "engines": Section("gpu_parts.engines:section_engines", 50, "TensorRT and ONNX Runtime on the digits"),
    "tactics": Section("gpu_parts.attention_speed:section_tactics", 40, "every tile of the table for this card"),
}


def run_section(name: str, out: Path) -> None:
    """One section here, in this process."""
    import torch

    checkout.provide()
    section = SECTIONS[name]
    torch.manual_seed(0)
    record = Record(name, out / f"{name}.json", section.budget_s)
    module, function = section.where.split(":")
    getattr(import_module(module), function)(record)
    record.finish()


def supervise(name: str, out: Path, limit_s: float) -> dict[str, Any]:
    """One section in a process of its own; what it wrote, with `error` where it didn't end well."""
    path = out / f"{name}.json"
    path.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__)), "--out", str(out), "--run-section", name]
    error, log = None, out / f"{name}.log"
    try:
        with log.open("w") as stderr:
            done = subprocess.run(command, stderr=stderr, check=False, timeout=limit_s)
        if done.returncode != 0:
            last = log.read_text(errors="replace").strip().splitlines()[-1:] or ["it said nothing"]
            error = f"exit code {done.returncode}: {last[0]}"
    except subprocess.TimeoutExpired:
        error = f"stopped after {limit_s:.0f} s"
    tree: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"section": name, "rows": []}
    if error is None:
        log.unlink()
    else:
        tree["error"] = error
        write_json(path, tree)
    return tree


def run(out: Path, names: list[str]) -> dict[str, Any]:
    """The sections one after another; gpu.json and gpu.md are rewritten after each."""
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    tree: dict[str, Any] = {"command": f"python benchmarks/gpu.py --out DIR --sections {','.join(names)}"}
    tree |= {"machine": machine.facts(), "sections": {}}
    for name in names:
        left = LIMIT_S - (time.monotonic() - start)
        limit = min(SECTIONS[name].budget_s + START_S, left)
        if limit < START_S:
            tree["sections"][name] = {"section": name, "rows": [], "error": f"no time left of {LIMIT_S:.0f} s"}
        else:
            print(f"{name}: {SECTIONS[name].shows} (at most {limit:.0f} s)", flush=True)
            tree["sections"][name] = supervise(name, out, limit)
        tree["wall_s"] = round(time.monotonic() - start, 1)
        tree["bars"] = summary.bars(tree["sections"])
        write_json(out / "gpu.json", tree)
        write(out / "gpu.md", summary.markdown(tree))
    return tree


def dry_run(names: list[str]) -> None:
    for name in names:
        print(f"{name:<12}{SECTIONS[name].budget_s:>4.0f} s  {SECTIONS[name].shows}")
    total = sum(SECTIONS[name].budget_s for name in names)
    print(f"{'in all':<12}{total:>4.0f} s  and up to {START_S:.0f} s of start per section; never over {LIMIT_S:.0f} s")


def sections_of(text: str) -> list[str]:
    """Names from `a,b`, in the table's order."""
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name not in SECTIONS:
            raise argparse.ArgumentTypeError(f"section {name!r} is unknown; sections: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in asked]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--sections", type=sections_of, default=list(SECTIONS), help="comma-separated; default: all")
    parser.add_argument("--dry-run", action="store_true", help="list sections and time budgets, and stop")
    parser.add_argument("--run-section", choices=SECTIONS, help=argparse.SUPPRESS)  # what `supervise` starts
    a = parser.parse_args()
    if a.dry_run:
        dry_run(a.sections)
        return 0
    if a.out is None:
        parser.error("--out DIR is required")
    if (reason := machine.no_device()) is not None:
        print(f"not exercised: {reason}")
        for line in machine.missing():
            print(f"missing: {line}")
        return 2
    if os.environ.get("TRITON_INTERPRET"):
        print("not exercised: TRITON_INTERPRET is set, so no kernel would run on the device")
        return 2
    if a.run_section:
        run_section(a.run_section, a.out)
        return 0
    tree = run(a.out, a.sections)
    for bar in tree["bars"]:
        met = {True: "met", False: "NOT MET", None: "not measured"}[bar["met"]]
        print(f"{bar['bar']}: {met} ({bar['figure']} {bar['worst']})")
    print(f"{a.out / 'gpu.md'}: {tree['wall_s']} s")
    failed = [name for name, section in tree["sections"].items() if "error" in section]
    return int(bool(failed) or any(bar["met"] is False for bar in tree["bars"]))


if __name__ == "__main__":
    sys.exit(main())
