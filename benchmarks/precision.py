"""What fp16, int8 and fp8 change in a bundle's images and in its group shares, on ONNX Runtime's CPU provider.

    python benchmarks/precision.py --work DIR           # the shipped digits bundle; resumable: DIR keeps the images
    python benchmarks/precision.py BUNDLE --work DIR

Every precision makes the same n images: same seeds, codes by quota. Compared with fp32: grey levels, and the group that
the shipped judge sees. Shares have 95 % intervals stratified by code. Times are medians over interleaved rounds on one
thread. They say what this CPU does, and nothing about a GPU: on x86 ONNX Runtime computes all of these graphs in
float32 between the roundings that they ask for, which costs time and saves none. It also rounds to fp16 less often than
the graph says; with a rounding after every operator (onnx's reference evaluator, `tests/export/test_precision.py`) one
call of a denoiser is about 1.5 times as far from fp32 in fp16, and hardly further in int8.
"""

import argparse
import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import render
from measured_steps import commit
from numpy.typing import NDArray
from store import RESULTS, save

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.machine import processor
from ddm_rt.evaluate import fairness
from ddm_rt.evaluate.intervals import stratified, wilson
from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.workflows.export import export

COMPARED = (Precision.FP32, Precision.FP16, Precision.INT8, Precision.FP8)
GROUPS = ("3", "8")


def bundles(source: str, work: Path) -> dict[Precision, Bundle]:
    """The fp32 bundle and its conversions, which are made in `work` where they aren't there."""
    original = Bundle.load(source)
    found = {Precision.FP32: original}
    for precision in COMPARED[1:]:
        place = work / f"{original.bundle_id[:12]}-{precision}"
        found[precision] = Bundle.load(place) if place.exists() else export(source, place, precision)
    return found


def images(pipeline: Pipeline, n: int, seed: int, work: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """n images [n, H, W, 3] and their codes [n], from `work` where they were made before with the same versions."""
    engine = pipeline.engine
    key = json.dumps([pipeline.bundle.bundle_id, n, seed, engine.threads, engine.versions], sort_keys=True)
    kept = work / f"images-{engine.precision}.npz"
    if kept.exists():
        with np.load(kept) as saved:
            if str(saved["key"]) == key:
                return saved["images"], saved["codes"]
    generation = pipeline.generate(n=n, seed=seed)
    codes = np.array(generation.codes, np.int64)
    np.savez(kept, images=generation.images, codes=codes, key=key)
    return generation.images, codes


def image_error(found: NDArray[np.uint8], reference: NDArray[np.uint8]) -> dict[str, float]:
    """Grey levels of `found` against `reference`, both [n, H, W, 3]."""
    error = np.abs(found.astype(np.int16) - reference.astype(np.int16))
    squared = float((error.astype(np.float64) ** 2).mean())
    return {
        "mean_grey_levels": float(error.mean()),
        "max_grey_levels": int(error.max()),
        "psnr_db": float(10 * np.log10(255**2 / squared)) if squared else float("inf"),
        "share_off_by_more_than_1": float((error > 1).mean()),
        "images_unchanged": int((error == 0).all(axis=(1, 2, 3)).sum()),
    }


def group_shares(labels: NDArray[np.str_], codes: NDArray[np.int64]) -> dict[str, Any]:
    counts = fairness.count_table(labels, GROUPS, codes)  # [codes, groups]
    p = fairness.shares(counts.sum(axis=0), GROUPS)
    outside = len(labels) - int(counts.sum())
    return {
        "shares": {group: float(share) for group, share in zip(GROUPS, p, strict=True)},
        "intervals": {
            group: stratified(column, counts.sum(axis=1)) for group, column in zip(GROUPS, counts.T, strict=True)
        },
        "fd_ddm": float(abs(p[0] - 0.5)),
        "neither": outside / len(labels),
        "neither_interval": wilson(outside, len(labels)),
    }


def seconds_per_image(pipelines: dict[Precision, Pipeline], n: int, rounds: int) -> dict[Precision, list[float]]:
    """Of `rounds` interleaved requests for n images each; buckets are probed before."""
    taken: dict[Precision, list[float]] = {precision: [] for precision in pipelines}
    for _ in range(rounds):
        for precision, pipeline in pipelines.items():
            start = time.perf_counter()
            pipeline.generate(n=n, seed=0)
            taken[precision].append((time.perf_counter() - start) / n)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", default="digits", help="fp32 bundle of digits 3 and 8")
    parser.add_argument("--work", type=Path, required=True, help="keeps converted bundles and images")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9, help="of the timing")
    parser.add_argument("--timed", type=int, default=32, help="images in each timed request")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of drift.jsonl and drift.md")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    opened = bundles(arguments.bundle, arguments.work)
    pipelines = {precision: Pipeline.load(bundle, "onnxruntime", 1) for precision, bundle in opened.items()}
    made = {}
    for precision, pipeline in pipelines.items():
        print(f"{precision}: {arguments.n} images, batch sizes {pipeline.buckets}", flush=True)
        made[precision] = images(pipeline, arguments.n, arguments.seed, arguments.work)
    judge = Judge.load("digits")
    labels = {precision: judge.predict(pictures).labels for precision, (pictures, _) in made.items()}
    taken = seconds_per_image(pipelines, arguments.timed, arguments.rounds)
    reference, baseline = made[Precision.FP32][0], taken[Precision.FP32]
    rows = []
    for precision, (pictures, codes) in made.items():
        ratios = [ours / theirs for ours, theirs in zip(taken[precision], baseline, strict=True)]
        rows.append(
            {
                "precision": precision.value,
                "bundle_id": opened[precision].bundle_id,
                "image_error": None if precision is Precision.FP32 else image_error(pictures, reference),
                "groups": group_shares(labels[precision], codes),
                "groups_changed": int((labels[precision] != labels[Precision.FP32]).sum()),
                "seconds_per_image": statistics.median(taken[precision]),
                "seconds_per_image_range": [min(taken[precision]), max(taken[precision])],
                "time_ratio": statistics.median(ratios),
                "graph_mib": sum(path.stat().st_size for path in opened[precision].graphs.values()) / 2**20,
                "buckets": list(pipelines[precision].buckets),
                "conversion": opened[precision].index.provenance.get("precision"),
            }
        )
    result = {
        "command": "python benchmarks/precision.py --work DIR",
        "bundle_id": opened[Precision.FP32].bundle_id,
        "n": arguments.n,
        "seed": arguments.seed,
        "rounds": arguments.rounds,
        "images_timed": arguments.timed,
        "machine": f"{platform.system()} {platform.machine()}, {processor()}, {os.cpu_count()} CPUs",
        "load_average": os.getloadavg(),
        "versions": {name: version(name) for name in ("onnxruntime", "onnx", "numpy")},
        "commit": commit(),
        "judge": {"name": judge.name, "sha256": judge.sha256, "accuracy": judge.accuracy},
        "rows": rows,
    }
    save("precision", result, arguments.results)
    print(render.render("drift", arguments.results))


if __name__ == "__main__":
    main()
