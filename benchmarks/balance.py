"""The balance table: six biased sets of digits, four methods, one training budget, one run per cell.

    python benchmarks/balance.py                # everything that is missing, two cells side by side; resumable

The rule of code discovery, α, guidance, sampler and budget are those of the preset `digits-bench`, chosen on pairs of
other digits. The table was run twice, and both runs are in it:

- "codes, first run" had no `codes.min_share` and an indicator guidance of 2, chosen on 4 and 9 alone. On 0v1 1:4 a mode
  of 27 outlying ones got half of the images; on 0v1 4:1 the codes were right but the guidance was too strong, and ones
  came out as zeros.
- "codes" has `min_share` = .05 and a guidance of 1.5, chosen on 4v9 4:1 and 1v6 1:4 by the Frechet distance. Weights
  are those of the first run, except on 0v1 1:4, since on the other five sets the codes don't change.

So the second run's choices were made after the first run was seen, though not on its sets. `benchmarks/code_rules.py`
compares the rules of code discovery on pairs that played no part in this.

REMEDIES are what was tried against copying of training images, on the set DEVELOPMENT alone; REMEDY was then run on the
others: of those that keep the Frechet distance there, it copies least. "real images" are images that no generator saw
in place of generated ones: what the test says of no copying.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from measured_steps import commit
from PIL import Image
from store import RESULTS, of_evaluation, put, read

from ddm_rt import data
from ddm_rt.config import DataConfig, RunConfig
from ddm_rt.files import write_json
from ddm_rt.presets import resolve

PRESET = "digits-bench"
PAIRS = ("3,8", "0,1", "7,8")
RATIOS = ("4:1", "1:4")
SETS = {f"{pair.replace(',', 'v')} {ratio}": f"digits:{pair}@{ratio}" for pair in PAIRS for ratio in RATIOS}
METHODS: dict[str, dict[str, Any]] = {
    "vanilla": {"train.indicator": "none"},
    "codes": {"train.indicator": "codes"},
    "paper": {"train.indicator": "labels", "train.indicator_weight": 0.05},
    "oracle": {"train.indicator": "codes"},  # codes are the true labels
}
STRESS = "stress 3v8 4:1"  # half of the images polarity-inverted
FIRST_RUN = "codes, first run"  # see above
FIRST = {"train.indicator": "codes", "codes.min_share": 0.0, "sampling.indicator_guidance_scale": 2.0}
ABLATIONS: dict[str, dict[str, Any]] = {  # on 3v8 4:1
    "codes α=0": {"train.indicator": "codes", "train.indicator_weight": 0.0},
    "codes α=.05": {"train.indicator": "codes", "train.indicator_weight": 0.05},
}
# Against copying. "codes, again" is `codes`, measured with all that the others are measured by.
DEVELOPMENT = "3v8 1:4"
REMEDY = "codes, 4 micro-codes"
REMEDIES: dict[str, dict[str, Any]] = {
    "codes, again": {},
    "codes, shift 1": {"train.shift": 1},
    "codes, dropout .2": {"model.unet.dropout": 0.2},
    REMEDY: {"codes.micro_codes": 4},
    "codes, 4 micro-codes, repeats 1, shift 1": {
        "codes.micro_codes": 4,
        "train.max_repeats": 1.0,
        "train.shift": 1,
    },
}
REAL = "real images"
METHODS_AND_MORE = METHODS | ABLATIONS | {FIRST_RUN: FIRST} | REMEDIES
N, SEED, MIN_PER_GROUP = 1000, 0, 400


def cells() -> list[tuple[str, str]]:
    """(set, method), the most telling first."""
    main = [(name, method) for method in METHODS for name in SETS]
    stress = [(STRESS, "vanilla"), (STRESS, "codes")]
    first = [(name, FIRST_RUN) for name in SETS]
    remedies = [(DEVELOPMENT, name) for name in REMEDIES] + [(name, REMEDY) for name in SETS if name != DEVELOPMENT]
    return main + stress + [("3v8 4:1", name) for name in ABLATIONS] + first + remedies


def slug(name: str, method: str) -> str:
    """What a cell's folders and logs are called."""
    text = f"{name}_{method}".replace(" ", "_").replace(":", "").replace("α=", "a").replace("ε", "eps")
    return text.replace(",", "")


def train_cell(name: str, method: str, work: Path) -> None:
    """Train, or take up what is there."""
    from ddm_rt.train.run import train

    run = work / slug(name, method) / "run"
    train(cell_config(name, method, work), run, progress={"train": _log(f"{name} {method}")})


def measure_cell(name: str, method: str, work: Path, results: Path) -> None:
    """Export, sample and measure a trained cell."""
    import onnxruntime
    import torch

    from ddm_rt.bundle import Bundle
    from ddm_rt.evaluate.evaluation import evaluate
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.evaluate.run import generate_until, labelled, three_channels
    from ddm_rt.export.run import export_run
    from ddm_rt.sample.pipeline import Pipeline

    run = work / slug(name, method)
    config = cell_config(name, method, work)
    if not (run / "bundle").exists():
        export_run(run / "run", run / "bundle")
    bundle = Bundle.load(run / "bundle")
    pipeline = Pipeline.load(bundle, backend="onnxruntime", threads=1)
    judge: Any = PolarityJudge(Judge.load("digits")) if name == STRESS else Judge.load("digits")
    groups = tuple(name.removeprefix("stress ").split()[0].split("v"))
    sampled = generate_until(pipeline, judge, groups, N, SEED, MIN_PER_GROUP)
    figures = evaluate(
        sampled.images,
        sampled.codes,
        judge,
        groups,
        labelled(f"digits:{','.join(groups)}", "reference", config.data),
        three_channels(data.load(config.data).images),
        min_per_group=MIN_PER_GROUP,
        n=N,
    )
    copies = copies_of(sampled.images, judge.predict(sampled.images).labels, groups, config)
    labels = np.array(data.load(config.data).labels)
    found = None
    if bundle.codes.leaves and method != "oracle":
        top = np.array(bundle.codes.top_of)[json.loads((run / "run" / "assignment.json").read_bytes())["code"]]
        found = {
            "top_sizes": np.bincount(top).tolist(),
            "group_share_in_top": {g: [float((labels[top == k] == g).mean()) for k in np.unique(top)] for g in groups},
            "stability_ari": list(bundle.training.discovery.stability_ari),
        }
    line = {
        "set": name,
        "method": method,
        "preset": PRESET,
        "settings": METHODS_AND_MORE[method],
        "seed": SEED,
        "evaluation": of_evaluation(figures.model_dump(mode="json")),
        "copies": copies,
        "codes_against_labels": found,  # for the reader; nothing before this line read the labels
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "commit": commit(),
    }
    put(results / "balance.jsonl", [line], "set", "method")


def copies_of(images: Any, labels: Any, groups: Sequence[str], config: RunConfig) -> dict[str, Any]:
    """The three-sample test of each group's images [N,H,W,3], by `labels` [N], against those of the run's training set.

    Held-out images are of the judge's split, which no generator saw.
    """
    from bench_parts.copying import copying

    from ddm_rt.evaluate.run import labelled, three_channels

    train = data.load(config.data)
    unseen = labelled(f"digits:{','.join(groups)}", "judge", config.data)
    found = {}
    for group in groups:
        ours = images[labels == group][:MIN_PER_GROUP]
        if len(ours):
            sets = (
                three_channels(train.images)[np.array(train.labels) == group],
                unseen.images[np.array(unseen.labels) == group],
            )
            found[group] = copying(ours, *sets).model_dump(mode="json")
    return found


def measure_real(name: str, work: Path, results: Path) -> None:
    """The test of copying on images of the reference split."""
    from ddm_rt.evaluate.run import labelled

    groups, config = tuple(name.split()[0].split("v")), cell_config(name, "vanilla", work)
    real = labelled(f"digits:{','.join(groups)}", "reference", config.data)
    copies = copies_of(real.images, np.array(real.labels), groups, config)
    put(
        results / "balance.jsonl",
        [{"set": name, "method": REAL, "copies": copies, "commit": commit()}],
        "set",
        "method",
    )


def cell_config(name: str, method: str, work: Path) -> RunConfig:
    overrides: dict[str, Any] = {"data.source": SETS.get(name, "")}
    overrides |= METHODS_AND_MORE[method]
    if name == STRESS:
        overrides["data.source"] = str(stress_folder(work))
    if method == "oracle":
        path = work / f"labels_{slug(name, method)}.json"
        labels = data.load(resolve(PRESET, {"data.source": SETS[name]}).data).labels or ()
        names = sorted(set(labels))
        write_json(path, {"code": [names.index(label) for label in labels]})
        overrides["codes.source"] = str(path)
    return resolve(PRESET, overrides)


def stress_folder(work: Path) -> Path:
    """3v8 at 4:1 as PNG files with labels, every other image inverted: a nuisance that splits the data in halves."""
    folder = work / "stress"
    if not (folder / "metadata.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        images = data.load(DataConfig(source="digits:3,8@4:1"))
        rows = [("file_name", "label")]
        for i, (image, label) in enumerate(zip(images.images, images.labels or (), strict=True)):
            pixels = 255 - image[..., 0] if i % 2 else image[..., 0]
            Image.fromarray(pixels).save(folder / f"{i:05d}.png")
            rows.append((f"{i:05d}.png", label))
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return folder


class PolarityJudge:
    """The judge, shown every image dark on the outside: for the stress set, whose images come in both polarities."""

    def __init__(self, judge: Any) -> None:
        self._judge = judge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._judge, name)

    def predict(self, images: Any, batch_size: int = 256) -> Any:
        border = np.concatenate(
            [images[:, :2].reshape(len(images), -1), images[:, -2:].reshape(len(images), -1)], axis=1
        )
        inverted = border.mean(axis=1) > 127
        return self._judge.predict(np.where(inverted[:, None, None, None], 255 - images, images), batch_size)


def _minority(name: str) -> int:
    return 1 if name.endswith("4:1") else 0


def _log(label: str) -> Any:
    def callback(done: int, total: int, figures: dict[str, float]) -> None:
        if done % 100 == 0 or done == total:
            print(f"{label}: {done}/{total} {figures}", flush=True)

    return callback


def _spawn(cell: tuple[str, str], arguments: argparse.Namespace) -> None:
    work = arguments.work
    command = [sys.executable, __file__, "--work", str(work), "--results", str(arguments.results), "--cell", *cell]
    command += ["--train-only"] if arguments.train_only else []
    log = work / f"{slug(*cell)}.log"
    work.mkdir(parents=True, exist_ok=True)
    with log.open("a") as file:
        code = subprocess.run(
            command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        ).returncode
    print(f"{cell[0]} {cell[1]}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/balance"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of balance.jsonl and balance.md")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, one thread each")
    parser.add_argument("--cell", nargs=2, metavar=("SET", "METHOD"), help="this cell alone, in this process")
    parser.add_argument("--train-only", action="store_true", help="train the missing cells, measure them later")
    arguments = parser.parse_args()
    if arguments.cell:
        train_cell(*arguments.cell, arguments.work)
        if not arguments.train_only:
            measure_cell(*arguments.cell, arguments.work, arguments.results)
        return
    there = [(line["set"], line["method"]) for line in read(arguments.results / "balance.jsonl")]
    for name in SETS:
        if (name, REAL) not in there:
            measure_real(name, arguments.work, arguments.results)
    missing = [cell for cell in cells() if cell not in there]
    with ThreadPoolExecutor(arguments.workers) as pool:
        list(pool.map(lambda cell: _spawn(cell, arguments), missing))
    from render import render  # its page needs this module

    print(render("balance", arguments.results))


if __name__ == "__main__":
    main()
