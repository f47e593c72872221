"""Faces with two attributes out of balance at once: gender 4:1 and race 8:4:2:1, by diffusion with accepted factors.

    python benchmarks/joint_faces.py POOL.npz ATTRIBUTES.npz NAME=FEATURES.npz [NAME=FEATURES.npz ...]

POOL.npz holds rendered faces `x` uint8 [N,32,32,3], ATTRIBUTES.npz the `gender` and `race` of each, and each
FEATURES.npz the features `z` [N,D] of an encoder that saw other faces with captions. They are cartoons, no photographs.
Every cell is resumable and takes one thread; `--only TEXT` runs those whose name contains the text, `--factors` looks
for factors and trains nothing.

A person accepts a candidate of `ddm-rt discover` for an attribute where its balanced accuracy is at least .75; the true
attributes stand in for her eyes. "blind" accepts all equal-share factors that there are, as somebody who doesn't look.
Labels: so many images, drawn at random, are labelled with both attributes, and a probe on the first encoder's features
gives the codes. The judge has seen images that no cell trains on.
"""

import argparse
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import render
import torch
from measured_steps import commit
from numpy.typing import NDArray
from store import RESULTS, of_evaluation, put, read

from ddm_rt import data
from ddm_rt.files import write_json
from ddm_rt.presets import resolve

GROUPS = {"gender": ("female", "male"), "race": ("asian", "black", "brown", "white")}
RACES = dict(zip(("white", "asian", "black", "brown"), (8, 4, 2, 1), strict=True))
# Images of (gender, race) in each training set.
SETS = {
    "joint": {(g, r): 15 * RACES[r] * (4 if g == "male" else 1) for g in GROUPS["gender"] for r in GROUPS["race"]},
    "balanced control": {(g, r): 150 for g in GROUPS["gender"] for r in GROUPS["race"]},
}
ACCEPTED = 0.75
N, DRAW, SEEDS = 1000, 100, (0, 1, 2)
STEPS, JUDGE_STEPS = 1200, 3000

Labels = NDArray[np.int64]


class Faces:
    """The pool: images uint8 [N,32,32,3] and the group of each by attribute, int64 [N]."""

    def __init__(self, pool: Path, attributes: Path) -> None:
        with np.load(pool) as arrays:
            self.images: NDArray[np.uint8] = arrays["x"]
        with np.load(attributes) as arrays:
            self.groups = {
                name: np.array([values.index(str(value)) for value in arrays[name]]) for name, values in GROUPS.items()
            }

    @property
    def joint(self) -> Labels:
        return self.groups["gender"] * 4 + self.groups["race"]

    def training(self, name: str) -> Labels:
        """The images of a training set."""
        rng = np.random.default_rng(DRAW)
        parts = []
        for (gender, race), count in SETS[name].items():
            cell = GROUPS["gender"].index(gender) * 4 + GROUPS["race"].index(race)
            parts.append(rng.choice(np.flatnonzero(self.joint == cell), count, replace=False))
        return np.sort(np.concatenate(parts))

    def others(self) -> tuple[Labels, Labels]:
        """Images that no set has: three fifths for the judge, the rest to measure it and as the reference."""
        left = np.setdiff1d(np.arange(len(self.images)), np.concatenate([self.training(name) for name in SETS]))
        left = np.random.default_rng(DRAW).permutation(left)
        return np.split(left, [3 * len(left) // 5])[0], np.split(left, [3 * len(left) // 5])[1]


def cells(encoders: list[str]) -> list[dict[str, Any]]:
    """Set, way to the codes and training seed of each cell, the most telling first."""
    first = encoders[0]
    found = [{"set": "joint", "way": f"{first} accepted", "seed": seed} for seed in SEEDS]
    found += [{"set": "balanced control", "way": f"{first} accepted", "seed": seed} for seed in SEEDS]
    found += [{"set": "joint", "way": way, "seed": 0} for way in ("vanilla", "256 labels", "64 labels")]
    found += [{"set": "joint", "way": f"{encoder} blind", "seed": 0} for encoder in encoders[1:]]
    return found


def balanced_accuracy(label: Labels, truth: Labels) -> float:
    """Mean recall over the groups where each side stands for the group that is most over-represented in it."""
    table = np.zeros((truth.max() + 1, label.max() + 1))
    np.add.at(table, (truth, label), 1)
    table /= table.sum(axis=1, keepdims=True)
    side_of = table.argmax(axis=0)
    return float(np.mean([table[k, side_of == k].sum() for k in range(len(table))]))


def factors_of(cell: Mapping[str, Any], faces: Faces, z: Mapping[str, NDArray[np.float32]], config: Any) -> Any:
    """The file of factors with what is accepted, and what is told of the candidates."""
    from ddm_rt.train.factors import record
    from ddm_rt.train.factors.candidates import Candidate, find_candidates

    index = faces.training(cell["set"])
    truth = {name: groups[index] for name, groups in faces.groups.items()}
    name, way = cell["way"].split()
    if way == "labels":
        candidates = [
            Candidate(_probed(z[next(iter(z))][index], truth[attribute], int(name)), "probe", attribute, 0, 0, 0)
            for attribute in GROUPS
        ]
    else:
        unit = z[name][index] / np.linalg.norm(z[name][index], axis=1, keepdims=True)
        candidates = find_candidates({"encoder": unit.astype(np.float32)}, config.codes, 0)
    accuracy = {
        attribute: [balanced_accuracy(candidate.label, truth[attribute]) for candidate in candidates]
        for attribute in GROUPS
    }
    if way == "blind":
        numbers = [i + 1 for i, candidate in enumerate(candidates) if candidate.rule.startswith("equal-share")]
    else:
        best = {attribute: int(np.argmax(scores)) for attribute, scores in accuracy.items()}
        numbers = [i + 1 for attribute, i in best.items() if accuracy[attribute][i] >= ACCEPTED or way == "labels"]
    found = record.FactorsFile(
        data=config.data,
        names_sha256=record.names_sha256(data.find(config.data).names),
        seed=0,
        factors=record.described(candidates, 0),
    )
    told = {
        "accuracy": accuracy,
        "rules": [candidate.rule for candidate in candidates],
        "accepted": numbers,
        "sides": [len(candidate.sizes) for candidate in candidates],
    }
    return record.accept(found, list(dict.fromkeys(numbers)), {}) if numbers else None, told


def _probed(features: NDArray[np.float32], truth: Labels, count: int) -> Labels:
    from ddm_rt.train.codes.probe import MIN_PER_CLASS, probe
    from ddm_rt.train.codes.probe import Labels as Few

    rng = np.random.default_rng([count, 0])
    classes = tuple(str(k) for k in range(truth.max() + 1))
    while True:
        index = np.sort(rng.choice(len(truth), count, replace=False))
        if np.bincount(truth[index], minlength=len(classes)).min() >= MIN_PER_CLASS:
            break
    _, assignment = probe({"encoder": features}, Few(index, truth[index], classes, ""), 0)
    return assignment


def judge_of(faces: Faces, path: Path) -> Any:
    """A classifier of the eight joint groups."""
    from ddm_rt.evaluate.judge import Judge

    if not path.is_file():
        from ddm_rt.export.classifier import export_classifier
        from ddm_rt.train.judge import confusion, fit

        train, held_out = faces.others()
        x = data.to_model(faces.images[train])
        mirrored = np.ascontiguousarray(x[..., ::-1])
        judge = fit(np.concatenate([x, mirrored]), np.tile(faces.joint[train], 2), seed=0, steps=JUDGE_STEPS)
        counts = confusion(judge, data.to_model(faces.images[held_out]), faces.joint[held_out])
        classes = [f"{gender} {race}" for gender in GROUPS["gender"] for race in GROUPS["race"]]
        about = {"images": len(x), "held_out": len(held_out), "steps": JUDGE_STEPS, "seed": 0}
        metadata = {"classes": classes, "confusion": counts.tolist(), "training": about}
        path.parent.mkdir(parents=True, exist_ok=True)
        export_classifier(judge, x.shape[1:], path, {key: json.dumps(value) for key, value in metadata.items()})
    return Judge.load(path)


def run_cell(cell: Mapping[str, Any], faces: Faces, z: Mapping[str, Any], work: Path, train_it: bool) -> dict[str, Any]:
    """Find factors, train, sample and measure one cell; what is there is taken."""
    from faces_parts.judging import AttributeJudge
    from faces_parts.sets import Faces as Written
    from faces_parts.sets import write_folder

    from ddm_rt.bundle import Bundle
    from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
    from ddm_rt.export.run import export_run
    from ddm_rt.sample.pipeline import Pipeline
    from ddm_rt.train.run import train

    index = faces.training(cell["set"])
    folder = write_folder(Written(faces.images[index], faces.joint[index]), work / cell["set"].replace(" ", "_"))
    own = work / f"{cell['set']} {cell['way']} {cell['seed']}".replace(" ", "_")
    fields: dict[str, Any] = {
        "preset": "faces-bench",
        "data.source": str(folder),
        "data.channels": 3,
        "train.steps": STEPS,
        "train.seed": cell["seed"],
        "sampling.indicator_guidance_scale": 1.25,
    }
    told: dict[str, Any] = {}
    if cell["way"] == "vanilla" and not train_it:
        return told
    if cell["way"] == "vanilla":
        fields["train.indicator"] = "none"
    else:
        chosen, told = factors_of(cell, faces, z, resolve("digits-bench", fields))
        if chosen is None or not train_it:
            return told
        own.mkdir(parents=True, exist_ok=True)
        write_json(own / "factors.json", chosen.model_dump(mode="json"))
        fields["codes.source"] = str(own / "factors.json")
    train(resolve("digits-bench", fields), own / "run")
    if not (own / "bundle").is_dir():
        export_run(own / "run", own / "bundle")
    bundle = Bundle.load(own / "bundle")
    made = Pipeline.load(bundle, backend="onnxruntime", threads=1).generate(n=N, seed=cell["seed"])
    _, reference = faces.others()
    judge = judge_of(faces, work / "judge.onnx")
    for attribute, groups in GROUPS.items():
        real = LabelledImages(faces.images[reference], [groups[k] for k in faces.groups[attribute][reference]])
        by = AttributeJudge(judge, attribute)
        figures = evaluate(made.images, np.array(made.codes, np.int64), by, groups, real, min_per_group=100)
        told[attribute] = of_evaluation(figures.model_dump(mode="json"))
        told[attribute].pop("codes", None)
    told["cells"] = bundle.training.discovery.rule.get("cells")
    told["effective_images"] = bundle.training.discovery.rule.get("effective_images")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pool", type=Path)
    parser.add_argument("attributes", type=Path)
    parser.add_argument("features", nargs="+", metavar="NAME=FEATURES.npz")
    parser.add_argument("--work", type=Path, default=Path("runs/joint_faces"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--factors", action="store_true", help="look for factors alone")
    parser.add_argument("--only", default="", help="cells whose set, way and seed contain this text")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    faces = Faces(arguments.pool, arguments.attributes)
    z = {}
    for text in arguments.features:
        name, _, path = text.partition("=")
        with np.load(path) as arrays:
            z[name] = arrays["z"].astype(np.float32)
    path = arguments.results / "joint_faces.jsonl"
    for cell in cells(list(z)):
        text = " ".join(map(str, cell.values()))
        there = next((line for line in read(path) if all(line[k] == v for k, v in cell.items())), None)
        done = there is not None and ("gender" in there or arguments.factors or there.get("accepted") == [])
        if arguments.only not in text or done:
            continue
        line = cell | run_cell(cell, faces, z, arguments.work, not arguments.factors)
        if line == cell:
            continue
        put(path, [line | {"machine": platform.machine(), "commit": commit()}], "set", "way", "seed")
        print(text, {name: line[name]["raw"]["scores"] for name in GROUPS if name in line}, flush=True)
    print(render.render("joint_faces", arguments.results))


if __name__ == "__main__":
    main()
