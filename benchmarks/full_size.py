"""Stable Diffusion 1.5's size without a GPU: the three graphs exported, converted to fp16 and built for SM89.

    python benchmarks/full_size.py --work DIR [--scale 1.0] [--force]

UNet (with the indicator in its 16 cross-attention layers), VAE decoder and text encoder with random weights;
TensorRT-RTX, strongly typed, with the batch profiles of `ddm-rt build`, at 64x64 latents. Every step runs in a process
of its own: wall time, CPU time and peak resident memory are that process's and its children's. A step whose result
exists for the same versions and settings is not run again. Exit code 1 says that a bar is not met; bars count at full
size only.
"""

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measured_steps
import render
from measured_steps import Bar
from store import RESULTS, load, save

from ddm_rt.errors import DdmError

PARTS = ("text_encoder", "vae_decoder", "unet")
STEPS = ("export", "convert", "build")
FILES = {"export": "{}.fp32.onnx", "convert": "{}.onnx", "build": "{}.plan"}  # what each step leaves
DISK_GIB = 8.0  # graphs with external data and plans, at scale 1
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "tensorrt-rtx")

BARS = (
    Bar("unet, build", ("unet.build",), "wall_s", 150.0, "s"),
    *(
        Bar(f"every part, {step}", tuple(f"{part}.{step}" for part in PARTS), "peak_rss_gib", limit, "GiB")
        for step, limit in {"export": 12.0, "convert": 12.0, "build": 6.0}.items()
    ),
)


def run(
    work: Path, results: Path, scale: float, sm: str, parts: list[str], force: bool, threads: int
) -> dict[str, Any]:
    """Every step that has no result yet, each recorded as it ends."""
    work.mkdir(parents=True, exist_ok=True)
    measured_steps.check_disk(work, DISK_GIB * max(scale, 0.05), scale)
    settings = f"scale {scale:g}, float16, sm_{sm}, batch profiles of `ddm-rt build`, {threads} threads"
    versions = {name: version(name) for name in PACKAGES}
    kept = load("full size", results) or {}
    same = kept.get("settings") == settings and kept.get("versions") == versions and not force
    steps: dict[str, dict[str, Any]] = {row["step"]: row for row in kept["rows"]} if same else {}
    tree: dict[str, Any] = {
        "command": f"python benchmarks/full_size.py --work DIR --scale {scale:g}",
        "settings": settings,
        "machine": measured_steps.machine(),
        "versions": versions,
    }
    worker = Path(__file__).with_name("full_size_worker.py")
    for part in parts:
        todo = measured_steps.needed({f"{part}.{step}": work / FILES[step].format(part) for step in STEPS}, steps)
        for step in STEPS:
            name = f"{part}.{step}"
            if name not in todo:
                print(f"{name}: kept", flush=True)
                continue
            print(f"{name}: started", flush=True)
            options = {"--work": work, "--scale": scale, "--sm": sm, "--threads": threads}
            command = [sys.executable, str(worker), step, part]
            figures = measured_steps.measure([*command, *(str(x) for pair in options.items() for x in pair)], name)
            facts = json.loads((work / f"{name}.json").read_text())
            steps[name] = {"step": name} | figures | facts | {"commit": measured_steps.commit()}
            tree["bars"] = measured_steps.held(BARS, steps)
            save("full size", tree | {"rows": list(steps.values())}, results)
            render.render("full_size", results)
            print(f"{name}: {figures['wall_s']:.1f} s, {figures['peak_rss_gib']:.2f} GiB resident", flush=True)
    return tree | {"steps": steps}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for graphs and plans: 8 GiB at scale 1")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of parameters, 0 < scale <= 1")
    parser.add_argument("--sm", default="89", help="architecture of the builds")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--results", type=Path, help="of full_size.jsonl; --work unless the scale is 1")
    parser.add_argument("--force", action="store_true", help="run steps again that have a result")
    a = parser.parse_args()
    try:
        if not 0 < a.scale <= 1:
            raise DdmError(f"--scale is {a.scale:g}; expected more than 0 and at most 1")
        results = a.results or (RESULTS if a.scale == 1 else a.work)
        tree = run(a.work, results, a.scale, a.sm, a.parts, a.force, a.threads)
    except DdmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = measured_steps.held(BARS, tree["steps"])
    print("\n".join(measured_steps.bar_lines(found)))
    return int(a.scale == 1 and any(bar["met"] is False for bar in found))


if __name__ == "__main__":
    sys.exit(main())
