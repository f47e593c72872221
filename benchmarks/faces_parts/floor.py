"""The noise floor of the smallest group's Frechet distance: what real faces score that no model has made."""

from pathlib import Path
from typing import Any

import numpy as np

from ddm_rt.evaluate.quality import frechet
from faces_parts import judging
from faces_parts.cells import MIN_PER_GROUP
from faces_parts.judging import AttributeJudge
from faces_parts.sets import SETS, Faces, biased, split

DRAWS, SEED = 50, 0


def measure(faces: Faces, work: Path) -> dict[str, Any]:
    """For each set: distances between the reference and as many real faces of its smallest group as the cells have.

    The faces are of the part that may be trained on, but not in the biased set; the reference is the cells'.
    """
    reference = split(faces, "reference")
    judge = judging.make(split(faces, "judge"), reference, work / "judge.onnx")
    pool = split(faces, "train")
    rows = []
    for name, what in SETS.items():
        seen = {image.tobytes() for image in biased(pool, what).images}
        fresh = pool.take(np.array([i for i, image in enumerate(pool.images) if image.tobytes() not in seen]))
        group = what.groups.index(what.smallest)
        own = fresh.take(np.flatnonzero(fresh.labels(what.attribute) == group))
        real = reference.take(np.flatnonzero(reference.labels(what.attribute) == group))
        view = AttributeJudge(judge, what.attribute)
        x, y = view.predict(own.images).features, view.predict(real.images).features
        rng = np.random.default_rng(SEED)
        count = MIN_PER_GROUP[what.attribute]
        scores = [frechet(x[rng.choice(len(x), count, replace=False)], y) for _ in range(DRAWS)]
        found = {"mean": np.mean(scores), "low": np.quantile(scores, 0.025), "high": np.quantile(scores, 0.975)}
        about = {"set": name, "group": what.smallest, "n": count, "images": len(own), "reference": len(real)}
        rows.append(about | {figure: float(value) for figure, value in found.items()})
    return {"draws": DRAWS, "rows": rows}
