"""Label-free rules on the biased sets of faces, by clustering alone; the rules are in `faces_parts/label_free.py`.

    python benchmarks/faces_label_free.py FACES.npz

Writes results/faces/label_free.json and prints the table. Features are those of the experiment (`faces.py`), and the
judge's own layer, which saw labels of other images: it stands in for a strong pretrained encoder, and no label-free
rule may be claimed to have it.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from faces_parts import code_files, judging, label_free, sets
from faces_parts.cells import slug
from numpy.typing import NDArray

from ddm_rt.files import write_json

RESULTS = Path(__file__).parent / "results" / "faces" / "label_free.json"
SETS = sets.SETS | {
    "race 1:2:4:8": sets.BiasedSet("race", (1, 2, 4, 8)),
    "balanced": sets.BiasedSet("gender", (1, 1)),
}
SEMANTIC = "judge's layer"


def measure(faces: sets.Faces, work: Path) -> dict[str, Any]:
    """FD_L2 of both attributes under each rule's weights, and n_eff/n, per set."""
    judge = judging.make(sets.split(faces, "judge"), sets.split(faces, "reference"), work / "judge.onnx")
    pool, tree = sets.split(faces, "train"), {}
    for name, what in SETS.items():
        train = sets.biased(pool, what)
        cache = work / slug(name) / "features"
        known: dict[str, NDArray[np.float64]] = {
            each: code_files.features(train, each, cache).astype(np.float64)
            for each in (*code_files.FEATURE_SETS, code_files.PATCHES)
        }
        colours = train.images.reshape(len(train), 4, 8, 4, 8, 3).mean(axis=(2, 4)).reshape(len(train), -1)
        rows = {"the data itself": figures(train, np.full(len(train), 1 / len(train)))}
        for title, rule in label_free.rules(list(known)).items():
            rows[title] = figures(train, rule(known, colours))
        semantic = {SEMANTIC: judge.predict(train.images).features.astype(np.float64)}
        for title, rule in label_free.rules([SEMANTIC]).items():
            if title.endswith(SEMANTIC):
                rows[title] = figures(train, rule(semantic, colours))
        tree[name] = rows
        print(name, "done", flush=True)
    return {"training_images": 1250, "sets": tree}


def figures(train: sets.Faces, weights: NDArray[np.float64]) -> dict[str, float]:
    found = {}
    for attribute, groups in sets.ATTRIBUTES.items():
        shares = np.bincount(train.labels(attribute), weights=weights, minlength=len(groups))
        found[f"{attribute}_fd_l2"] = round(float(np.linalg.norm(shares - 1 / len(groups))), 4)
    found["effective_share"] = round(float(1 / (weights**2).sum() / len(weights)), 4)
    return found


def table(tree: dict[str, Any]) -> str:
    """Markdown: gender / race FD_L2 on each set, and the mean over the sets of the biased attribute's."""
    names = list(tree["sets"])
    columns = ["rule", "features", *names, "worst", "n_eff / n"]
    lines = [f"| {' | '.join(columns)} |", f"| {' | '.join(['---'] * len(columns))} |"]
    for title in tree["sets"][names[0]]:
        rows = [tree["sets"][name][title] for name in names]
        cells = [f"{row['gender_fd_l2']:.2f} / {row['race_fd_l2']:.2f}" for row in rows]
        worst = max(max(row["gender_fd_l2"], row["race_fd_l2"]) for row in rows)
        share = np.mean([row["effective_share"] for row in rows])
        rule, _, features = title.partition(" | ")
        lines.append(f"| {rule} | {features} | {' | '.join(cells)} | {worst:.2f} | {share:.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="the .npz file of faces")
    parser.add_argument("--work", type=Path, default=Path("runs/faces"), help="features and judge (not committed)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    tree = measure(sets.read(arguments.faces), arguments.work)
    write_json(arguments.out, tree)
    print(table(tree))


if __name__ == "__main__":
    main()
