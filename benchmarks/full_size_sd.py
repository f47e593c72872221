"""Stable Diffusion at full size on a CPU: `ddm-rt import`, `export` and `sample`, with random weights.

    python benchmarks/full_size_sd.py --work DIR [--families sd15 sdxl] [--scale 1.0] [--force] [--keep]

The published architectures (SD 1.5 in float32, SDXL in float16, as it is commonly published); after the import, an
indicator with 4 codes and low-rank factors of rank 8 are added to the run, as training leaves them, so that the export
merges and traces what a trained run has. A family's first bundle is traced from the run; its others are converted from
that one. Sampling is two steps at 256x256 with a prompt, a negative prompt and joint guidance, through ONNX Runtime
with two threads. Every command runs in a process of its own: wall time, CPU time and peak resident memory (files mapped
into memory included) are that process's. A command whose result exists for the same versions and settings is not run
again. Exit code 1 says that a bar is not met; bars count at full size only.
"""

import argparse
import json
import math
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import measured_steps
import numpy as np
import render
from measured_steps import Bar
from PIL import Image
from store import RESULTS, load, save

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError

PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnxscript", "onnxruntime")
THREADS, SIDE, STEPS = 2, 256, 2


@dataclass(frozen=True)
class Family:
    """What is measured of one architecture."""

    dtype: str  # of the checkpoint and of the imported run
    precisions: tuple[str, ...]  # of the bundles
    disk_gib: float  # at scale 1


FAMILIES = {"sd15": Family("fp32", ("fp32", "fp16", "int8-weights"), 20.0), "sdxl": Family("fp16", ("fp16",), 45.0)}
BARS = (
    Bar("SD 1.5, export", ("sd15.export fp32",), "peak_rss_gib", 12.0, "GiB"),
    Bar("SD 1.5, export", ("sd15.export fp32",), "wall_s", 240.0, "s"),
    Bar("SD 1.5 with weights in int8, sample", ("sd15.sample int8-weights",), "peak_rss_gib", 2.0, "GiB"),
    Bar("SDXL, export in fp16", ("sdxl.export fp16",), "peak_rss_gib", 20.0, "GiB"),
)


def chain(family: str, folder: Path) -> dict[str, Path]:
    """Steps of a family in order, each with what it leaves in `folder`."""
    steps = {f"{family}.checkpoint": folder / "checkpoint", f"{family}.import": folder / "run"}
    steps[f"{family}.indicator"] = folder / "run" / "weights.safetensors"
    first = FAMILIES[family].precisions[0]
    for precision in FAMILIES[family].precisions:
        steps[f"{family}.{'export' if precision == first else 'convert'} {precision}"] = folder / f"bundle-{precision}"
        steps[f"{family}.sample {precision}"] = folder / f"images-{precision}"
    return steps


def command(name: str, folder: Path, scale: float) -> list[str]:
    """The command line of one step."""
    family, _, step = name.partition(".")
    step, _, precision = step.partition(" ")
    run, bundle = folder / "run", folder / f"bundle-{precision}"
    first = folder / f"bundle-{FAMILIES[family].precisions[0]}"
    ours = [sys.executable, "-P", "-m", "ddm_rt.cli", "export" if step == "convert" else step]
    writer = [sys.executable, str(Path(__file__).with_name("full_size_sd_checkpoint.py"))]
    lines: dict[str, list[object]] = {
        "checkpoint": [
            *writer,
            family,
            *(folder / "checkpoint", "--scale", scale, "--dtype", FAMILIES[family].dtype),
        ],
        "indicator": [*writer, "indicator", run],
        "import": [*ours, "--base", folder / "checkpoint", "--dtype", FAMILIES[family].dtype, "--out", run],
        "export": [*ours, run, "--precision", precision, "--out", bundle],
        "convert": [*ours, first, "--precision", precision, "--out", bundle],
        "sample": [
            *(*ours, bundle, "-n", 1, "--seed", 0, "--steps", STEPS, "--height", SIDE, "--width", SIDE),
            *("--prompt", "a photo of a doctor", "--negative-prompt", "blurry"),
            *("--backend", "onnxruntime", "--threads", THREADS, "--out", folder / f"images-{precision}"),
        ],
    }
    return [str(word) for word in lines[step]]


def facts(name: str, left: Path) -> dict[str, Any]:
    """What a step left: bytes; of a checkpoint, its parameters; of an export, its parity; of a sample, its contrast.

    Raises DdmError for an image that is one flat colour: numbers that aren't finite end as one.
    """
    files = [path for path in (left.rglob("*") if left.is_dir() else [left]) if path.is_file()]
    found: dict[str, Any] = {"bytes": sum(path.stat().st_size for path in files)}
    if name.endswith(".checkpoint"):
        found["parameters"] = {path.parent.name: _parameters(path) for path in left.rglob("*.safetensors")}
    if ".export" in name or ".convert" in name:
        provenance = Bundle.load(left, verify=False).index.provenance
        found["parity_max_abs_error"] = provenance["parity_max_abs_error"]
        found["difference_from_fp32"] = provenance.get("precision", {}).get("report", {}).get("max_abs_difference")
    if ".sample" in name:
        (image,) = left.glob("0*.png")
        pixels = np.asarray(Image.open(image))
        found |= {"image": list(pixels.shape), "grey_levels_std": round(float(pixels.std()), 2)}
        if found["grey_levels_std"] == 0:
            raise DdmError(f"{image}: one flat colour; expected an image that varies")
    return found


def _parameters(path: Path) -> int:
    """How many numbers a safetensors file holds, from its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def run(work: Path, results: Path, scale: float, families: list[str], *, force: bool, keep: bool) -> dict[str, Any]:
    """Every step that has no result yet, each recorded as it ends."""
    work.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file()) / measured_steps.GIB
    need = max(FAMILIES[name].disk_gib for name in families) * max(scale, 0.02)
    measured_steps.check_disk(work, max(0.0, need - there), scale)
    settings = f"scale {scale:g}, {STEPS} steps at {SIDE}x{SIDE}, {THREADS} threads"
    versions = {name: version(name) for name in PACKAGES}
    kept = load("full size SD", results) or {}
    same = kept.get("settings") == settings and kept.get("versions") == versions and not force
    steps: dict[str, dict[str, Any]] = {row["step"]: row for row in kept["rows"]} if same else {}
    tree: dict[str, Any] = {
        "command": f"python benchmarks/full_size_sd.py --work DIR --scale {scale:g}",
        "settings": settings,
        "machine": measured_steps.machine(),
        "versions": versions,
    }
    for family in families:
        folder = work / family
        folder.mkdir(exist_ok=True)
        links = chain(family, folder)
        todo = measured_steps.needed(links, steps)
        for name, left in links.items():
            if name not in todo:
                print(f"{name}: kept", flush=True)
                continue
            print(f"{name}: started", flush=True)
            _remove(left)
            figures = measured_steps.measure(command(name, folder, scale), name)
            steps[name] = {"step": name} | figures | facts(name, left) | {"commit": measured_steps.commit()}
            steps = {name: steps[name] for name in _order() if name in steps}
            tree["bars"] = measured_steps.held(BARS, steps)
            save("full size SD", tree | {"rows": list(steps.values())}, results)
            render.render("full_size", results)
            print(f"{name}: {figures['wall_s']:.1f} s, {figures['peak_rss_gib']:.2f} GiB resident", flush=True)
        if not keep:
            shutil.rmtree(folder)
    return tree | {"steps": steps}


def _order() -> list[str]:
    return [name for family in FAMILIES for name in chain(family, Path())]


def _remove(left: Path) -> None:
    """What an earlier attempt left: commands write into new directories."""
    if left.is_dir():
        shutil.rmtree(left)
    left.unlink(missing_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and bundles")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of parameters, 0 < scale <= 1")
    parser.add_argument("--results", type=Path, help="of full_size.jsonl; --work unless the scale is 1")
    parser.add_argument("--force", action="store_true", help="run steps again that have a result")
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and bundles in --work")
    a = parser.parse_args()
    try:
        if not 0 < a.scale <= 1:
            raise DdmError(f"--scale is {a.scale:g}; expected more than 0 and at most 1")
        results = a.results or (RESULTS if a.scale == 1 else a.work)
        tree = run(a.work, results, a.scale, a.families, force=a.force, keep=a.keep)
    except DdmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    bars = measured_steps.held(BARS, tree["steps"])
    print("\n".join(measured_steps.bar_lines(bars)))
    return int(a.scale == 1 and any(bar["met"] is False for bar in bars))


if __name__ == "__main__":
    sys.exit(main())
