"""The tables of the DDM paper (arXiv 2503.12536): its pairs, ratios, objective and weights, and ours beside them.

    python benchmarks/paper.py --faces FACES.npz   # everything that is missing, one cell after the other; resumable
    python benchmarks/paper.py --list              # the cells and which are there
    python benchmarks/paper.py --cell "3v8 1:1" "paper α=.05" 0 1200

A cell is a set, a method, a training seed and a number of training steps. Digits are those of `balance.py`, of the
preset `digits-bench`; its rows (seed 0, 1,200 steps, 4:1 and 1:4) are read from balance.jsonl and not made again. Faces
are those of `faces.py`. "paper" is the paper's objective, (1 - α)·MSE + α·CE of the indicator, with the true label of
each image; at α = 0 it is vanilla. "ε" predicts noise, as the paper's models do; the other models predict x0.

The inception score is of the judge's classes (digits: ten; faces: the two genders), where the paper's is of
Inception's, so the two share no scale. FACES.npz is `faces.py`'s.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import balance
import numpy as np
from measured_steps import commit
from numpy.typing import NDArray
from store import RESULTS, of_evaluation, put, read

from ddm_rt.config import RunConfig
from ddm_rt.files import write_json
from ddm_rt.presets import resolve

PAIRS = ("3v8", "0v1", "7v8")
RATIOS = ("1:4", "1:1", "4:1")
ALPHAS = (0.01, 0.05, 0.1)
MAIN = ("vanilla", "paper α=.05", "codes", "oracle")
# 1,200 steps are `balance.py`'s budget. Noise needs more of a network this narrow.
STEPS, LONG = 1200, 4800
SEEDS = (0, 1, 2)
FACES = {"gender 1:4": (1, 4), "gender 1:1": (1, 1), "gender 4:1": (4, 1)}
N, SEED = 1000, 0

# The only figures of the paper that we have (faces, male to female, 1,000 images): FD, FID and IS at α = 0 and at each
# of ALPHAS. Its FD is taken to be |p - 1/2|, and its FID isn't that of 2,048 features.
PAPER = {
    "gender 1:4": ((0.14, 0.017, 3.13), (0.11, 0.023, 3.11), (0.08, 0.025, 3.90), (0.10, 0.043, 3.50)),
    "gender 1:1": ((0.08, 0.015, 3.15), (0.02, 0.015, 3.59), (0.05, 0.016, 3.51), (0.03, 0.026, 3.80)),
    "gender 4:1": ((0.30, 0.014, 4.03), (0.40, 0.018, 3.88), (0.14, 0.014, 3.97), (0.40, 0.021, 3.52)),
}


class Key(NamedTuple):
    """What names a cell, here and in paper.jsonl."""

    set: str
    method: str
    seed: int
    steps: int


@dataclass(frozen=True)
class Method:
    """A way to train: overrides of the preset, and whether codes are the true labels."""

    overrides: dict[str, Any]
    labelled: bool = False


def methods() -> dict[str, Method]:
    """By name."""
    epsilon = {"schedule.prediction_type": "epsilon"}
    found = {
        "vanilla": Method({"train.indicator": "none"}),
        "codes": Method({"train.indicator": "codes"}),
        "oracle": Method({"train.indicator": "codes"}, labelled=True),
    }
    for alpha in ALPHAS:
        found[paper(alpha)] = Method({"train.indicator": "labels", "train.indicator_weight": alpha})
    for name in ("vanilla", *map(paper, ALPHAS)):
        found[f"{name}, ε"] = Method(found[name].overrides | epsilon)
    return found


def paper(alpha: float) -> str:
    """The paper's objective at weight α, as it is called."""
    return f"paper α={f'{alpha:g}'.lstrip('0')}"


def cells() -> list[Key]:
    """All that balance.jsonl doesn't have, the most telling first."""
    biased = [ratio for ratio in RATIOS if ratio != "1:1"]
    even = [Key(f"{pair} 1:1", method, 0, STEPS) for pair in PAIRS for method in MAIN]
    weights = [Key(f"3v8 {ratio}", paper(alpha), 0, STEPS) for ratio in biased for alpha in (0.01, 0.1)]
    seeds = [
        Key(f"3v8 {ratio}", method, seed, STEPS)
        for seed in SEEDS[1:]
        for ratio in ("4:1", "1:4", "1:1")
        for method in MAIN
    ]
    faces = [Key(name, method, 0, STEPS) for name in FACES for method in ("vanilla", *map(paper, ALPHAS), "oracle")]
    noise = [
        Key(f"3v8 {ratio}", f"{method}, ε", 0, steps)
        for steps in (STEPS, LONG)
        for ratio in biased
        for method in ("vanilla", *map(paper, ALPHAS))
    ]
    return [*even, *weights, *faces, *seeds, *noise]


def folder(key: Key, work: Path) -> Path:
    """Where a cell's run and bundle are."""
    name = balance.slug(key.set, key.method).replace(".", "")
    return work / f"{name}_seed{key.seed}_{key.steps}"


def make(key: Key, work: Path, results: Path, faces: Path | None) -> None:
    """Train, export, sample and measure a cell; what is there of it is taken up."""
    import onnxruntime
    import torch

    from ddm_rt.bundle import Bundle
    from ddm_rt.evaluate.evaluation import evaluate
    from ddm_rt.evaluate.run import three_channels
    from ddm_rt.export.run import export_run
    from ddm_rt.sample.pipeline import Pipeline
    from ddm_rt.train.run import train

    made = _face_material(key, work, faces) if key.set in FACES else _digits_material(key)
    run = folder(key, work)
    config = _config(key, made, work)
    train(config, run / "run", progress={"train": balance._log(" ".join(map(str, key)))})
    if not (run / "bundle").exists():
        export_run(run / "run", run / "bundle")
    pipeline = Pipeline.load(Bundle.load(run / "bundle"), backend="onnxruntime", threads=1)
    sampled = pipeline.generate(n=N, seed=SEED)
    codes = np.array(sampled.codes, np.int64)
    figures = evaluate(
        sampled.images,
        None if (codes < 0).all() else codes,
        made.judge,
        made.groups,
        made.reference,
        three_channels(made.images),
    )
    line = {
        **key._asdict(),
        "settings": methods()[key.method].overrides,
        "training_images": len(made.images),
        "evaluation": of_evaluation(figures.model_dump(mode="json")),
        "inception_score": inception_score(made.judge.predict(sampled.images).probabilities),
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "versions": {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__},
        "commit": commit(),
    }
    put(results / "paper.jsonl", [line], *Key._fields)


class Material(NamedTuple):
    """What a cell trains on and is measured by."""

    overrides: dict[str, Any]
    images: NDArray[np.uint8]  # [N, H, W, channels]
    labels: tuple[str, ...]
    groups: tuple[str, ...]
    judge: Any
    reference: Any


def _digits_material(key: Key) -> Material:
    from ddm_rt import data
    from ddm_rt.evaluate.judge import Judge
    from ddm_rt.evaluate.run import labelled

    pair, ratio = key.set.split()
    groups = tuple(pair.split("v"))
    source = f"digits:{','.join(groups)}"
    config = resolve(balance.PRESET, {"data.source": f"{source}@{ratio}"}).data
    training = data.load(config)
    reference = labelled(source, "reference", config)
    overrides = {"data.source": config.source}
    return Material(overrides, training.images, training.labels or (), groups, Judge.load("digits"), reference)


def _face_material(key: Key, work: Path, path: Path | None) -> Material:
    from faces_parts import cells as faces_cells
    from faces_parts import judging, sets

    from ddm_rt.evaluate.evaluation import LabelledImages

    if path is None:
        raise SystemExit(f"{key.set}: give --faces FACES.npz")
    what = sets.BiasedSet("gender", FACES[key.set][::-1])  # the paper's ratios are male to female
    faces = sets.read(path)
    reference = sets.split(faces, "reference")
    judge: Any = judging.make(sets.split(faces, "judge"), reference, work / "judge_faces.onnx")
    training = sets.biased(sets.split(faces, "train"), what)
    labels = tuple(what.groups[k] for k in training.labels("gender"))
    source = sets.write_folder(training, work / f"faces_{balance.slug(key.set, '')}", labels)
    held_out = LabelledImages(reference.images, [what.groups[k] for k in reference.labels("gender")])
    overrides = {name: value for name, value in faces_cells.BUDGET.items() if name != "train.steps"}
    overrides["data.source"] = str(source)
    return Material(overrides, training.images, labels, what.groups, judging.AttributeJudge(judge, "gender"), held_out)


def _config(key: Key, made: Material, work: Path) -> RunConfig:
    method = methods()[key.method]
    overrides = made.overrides | method.overrides | {"train.seed": key.seed, "train.steps": key.steps}
    if method.labelled:
        path = work / f"{folder(key, work).name}.codes.json"
        work.mkdir(parents=True, exist_ok=True)
        write_json(path, {"code": [made.groups.index(label) for label in made.labels]})
        overrides["codes.source"] = str(path)
    return resolve(balance.PRESET, overrides)


def inception_score(probabilities: NDArray[np.float32]) -> float:
    """exp of the mean of KL(p(y|x) || p(y)) over images; probabilities [N,K] (Salimans et al. 2016, arXiv 1606.03498,
    section 4).
    """
    p = np.clip(probabilities.astype(np.float64), 1e-12, None)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(axis=0)))).sum(axis=1).mean()))


def there(results: Path) -> set[Key]:
    """The cells that are measured."""
    return {Key(*(line[name] for name in Key._fields)) for line in read(results / "paper.jsonl")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of paper.jsonl and paper.md")
    parser.add_argument("--faces", type=Path, metavar="FACES.npz", help="what `faces.py` takes; without: digits alone")
    parser.add_argument("--cell", nargs=4, metavar=Key._fields, help="this cell alone")
    parser.add_argument("--list", action="store_true", help="say which cells there are, and make none")
    arguments = parser.parse_args()
    if arguments.cell:
        name, method, seed, steps = arguments.cell
        make(Key(name, method, int(seed), int(steps)), arguments.work, arguments.results, arguments.faces)
        return
    done = there(arguments.results)
    if arguments.list:
        print("\n".join(f"{'there' if key in done else 'missing':8}{' | '.join(map(str, key))}" for key in cells()))
        return
    for key in cells():
        # Asked each time: another process may have made it meanwhile.
        if key not in there(arguments.results) and (key.set not in FACES or arguments.faces):
            make(key, arguments.work, arguments.results, arguments.faces)
            print(json.dumps(key), "done", flush=True)
    from render import render  # its page needs this module

    sys.stdout.write(render("paper", arguments.results))


if __name__ == "__main__":
    main()
