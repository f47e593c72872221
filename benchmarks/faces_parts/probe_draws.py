"""How much few-label codes depend on which images were labelled: many draws, by the codes' composition alone."""

from pathlib import Path
from typing import Any

import numpy as np

from faces_parts import code_files
from faces_parts.cells import slug
from faces_parts.methods import LABELS, Method
from faces_parts.sets import SETS, Faces, biased, split

DRAWS, FIRST = 20, 100  # other draws than the table's


def measure(faces: Faces, work: Path) -> dict[str, Any]:
    """Per set and number of labels: the set's own score of even shares of the codes, and the smallest group's recall.

    No diffusion: the shares that generated images would have if each code gave what it holds.
    """
    rows = []
    for name, what in SETS.items():
        train = biased(split(faces, "train"), what)
        truth, groups = train.labels(what.attribute), len(what.groups)
        for count in LABELS:
            scores, recalls, chosen = [], [], []
            for draw in range(FIRST, FIRST + DRAWS):
                method = Method("", "few-label", "", count, draw)
                made, about = code_files.make(train, what, method, work / slug(name) / "features")
                code = np.array(made["code"])
                held = [np.bincount(truth[code == k], minlength=groups) / (code == k).sum() for k in range(groups)]
                off = np.mean(held, axis=0) - 1 / groups
                scores.append(float(abs(off[0]) if groups == 2 else np.linalg.norm(off)))
                recalls.append(about["recall_per_group"][what.groups.index(what.smallest)])
                chosen.append(about["features"])
            rows.append(
                {
                    "set": name,
                    "labels": count,
                    "score": what.score,
                    "draws": DRAWS,
                    "mean": round(float(np.mean(scores)), 4),
                    "p90": round(float(np.quantile(scores, 0.9)), 4),
                    "largest": round(max(scores), 4),
                    "smallest_group_recall": round(float(np.mean(recalls)), 3),
                    "features_chosen": {each: chosen.count(each) for each in sorted(set(chosen))},
                }
            )
    return {"rows": rows}
