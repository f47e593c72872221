"""Which guidance the table has: measured beforehand, on a set that isn't in it (gender 2:1, true labels as codes)."""

from pathlib import Path
from typing import Any

import numpy as np

from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
from faces_parts.cells import Cell
from faces_parts.judging import AttributeJudge
from faces_parts.methods import methods
from faces_parts.sets import Faces

SET, GUIDANCES, N = "gender 2:1", (1.0, 1.25, 1.5, 2.0, 3.0), 500


def measure(faces: Faces, judge: Any, reference: Faces, work: Path, progress: Any) -> dict[str, Any]:
    """Scores and distances at each guidance. 1.25 was chosen: the least distance of those with the least FD_ddm."""
    from ddm_rt.sample.pipeline import Pipeline

    cell = Cell(faces, SET, methods()["oracle"], work)
    pipeline = Pipeline.load(cell.fit(progress), backend="onnxruntime", threads=1)
    groups = cell.what.groups
    held_out = LabelledImages(reference.images, [groups[k] for k in reference.labels("gender")])
    rows = []
    for guidance in GUIDANCES:
        made = pipeline.generate(n=N, seed=0, indicator_guidance_scale=guidance)
        codes = np.array(made.codes, np.int64)
        judged = AttributeJudge(judge, "gender")
        found = evaluate(made.images, codes, judged, groups, held_out, min_per_group=200, n=N)
        each = [None if row.quality is None else row.quality.frechet for row in found.per_group]
        rows.append(
            {
                "guidance": guidance,
                "fd_ddm": found.raw.scores.fd_ddm,
                "frechet": found.quality.frechet,
                "frechet_per_group": each,
            }
        )
    return {"set": SET, "codes": "true labels", "n": N, "rows": rows}
