"""Label-free rules on the biased sets of faces, by clustering alone; the rules are in `faces_parts/label_free.py`.

    python benchmarks/faces_label_free.py FACES.npz

Writes "faces: rules" of results/codes.jsonl and its table, in faces.md. Features are those of the experiment
(`faces.py`), and the judge's own layer, which saw labels of other images: it stands in for a strong pretrained encoder,
and no label-free rule may be claimed to have it.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import render
from faces_parts import code_files, judging, label_free, sets
from faces_parts.cells import slug
from measured_steps import commit
from numpy.typing import NDArray
from store import RESULTS, save

SETS = sets.SETS | {
    "race 1:2:4:8": sets.BiasedSet("race", (1, 2, 4, 8)),
    "balanced": sets.BiasedSet("gender", (1, 1)),
}
SEMANTIC = "judge's layer"


def measure(faces: sets.Faces, work: Path) -> dict[str, Any]:
    """FD_L2 of both attributes under each rule's weights, and n_eff/n: a figure for each set."""
    judge = judging.make(sets.split(faces, "judge"), sets.split(faces, "reference"), work / "judge.onnx")
    pool = sets.split(faces, "train")
    made: dict[str, dict[str, list[float]]] = {}
    for name, what in SETS.items():
        train = sets.biased(pool, what)
        cache = work / slug(name) / "features"
        known: dict[str, NDArray[np.float64]] = {
            each: code_files.features(train, each, cache).astype(np.float64)
            for each in (*code_files.FEATURE_SETS, code_files.PATCHES)
        }
        colours = train.images.reshape(len(train), 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(train), -1)
        found = {"the data itself": figures(train, np.full(len(train), 1 / len(train)))}
        for title, rule in label_free.rules(list(known)).items():
            found[title] = figures(train, rule(known, colours))
        semantic = {SEMANTIC: judge.predict(train.images).features.astype(np.float64)}
        for title, rule in label_free.rules([SEMANTIC]).items():
            if title.endswith(SEMANTIC):
                found[title] = figures(train, rule(semantic, colours))
        for title, scores in found.items():
            for score, value in scores.items():
                made.setdefault(title, {}).setdefault(score, []).append(value)
        print(name, "done", flush=True)
    titles = {title: dict(zip(("rule", "features"), [*title.split(" | "), ""], strict=False)) for title in made}
    return {"training_images": 1250, "sets": list(SETS), "rows": [titles[title] | made[title] for title in made]}


def figures(train: sets.Faces, weights: NDArray[np.float64]) -> dict[str, float]:
    found = {}
    for attribute, groups in sets.ATTRIBUTES.items():
        shares = np.bincount(train.labels(attribute), weights=weights, minlength=len(groups))
        found[f"{attribute}_fd_l2"] = round(float(np.linalg.norm(shares - 1 / len(groups))), 4)
    found["effective_share"] = round(float(1 / (weights**2).sum() / len(weights)), 4)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="the .npz file of faces")
    parser.add_argument("--work", type=Path, default=Path("runs/faces"), help="features and judge (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of codes.jsonl and faces.md")
    arguments = parser.parse_args()
    tree = measure(sets.read(arguments.faces), arguments.work)
    save("faces: rules", tree | {"commit": commit()}, arguments.results)
    print(render.render("faces", arguments.results))


if __name__ == "__main__":
    main()
