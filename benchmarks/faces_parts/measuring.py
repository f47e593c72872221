"""What a cell's images are: every attribute's shares and quality by the judge, and what the codes followed."""

import json
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray
from store import of_evaluation

from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
from faces_parts.cells import MIN_PER_GROUP, Cell, N
from faces_parts.judging import AttributeJudge
from faces_parts.sets import ATTRIBUTES, Faces

LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # Rec. 709
OF_OTHERS = ("class_counts", "raw", "corrected")  # kept of the attribute that isn't out of balance
NOT_KEPT = ("noise_floor", "codes")  # of the other one
CHEEKS = (slice(17, 21), (slice(10, 13), slice(19, 22)))  # rows, and columns on either side of the nose


def measure(cell: Cell, judge: Any, reference: Faces, sampled: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """The cell's line, without what it has none of."""
    images, codes = sampled["images"], sampled["codes"]
    with_codes = None if (codes < 0).all() else codes
    figures: dict[str, Any] = {}
    own_run = cell.method.run == cell.method.name  # else the line of that run has what is said of its codes
    for attribute, groups in ATTRIBUTES.items():
        held_out = LabelledImages(reference.images, [groups[k] for k in reference.labels(attribute)])
        own = attribute == cell.what.attribute
        found = evaluate(
            images,
            with_codes,
            AttributeJudge(judge, attribute),
            groups,
            held_out,
            cell.train.images if own else None,
            min_per_group=MIN_PER_GROUP[cell.what.attribute],
            n=N,
        )
        kept = of_evaluation(found.model_dump(mode="json"))
        names = [name for name in kept if name not in NOT_KEPT] if own else OF_OTHERS
        figures[attribute] = {name: kept[name] for name in names}
    line = {
        "set": cell.name,
        "method": cell.method.name,
        "kind": cell.method.kind,
        "labels_or_audits": cell.method.count if cell.method.kind in ("few-label", "calibrated") else 0,
        "guidance": None if cell.method.kind == "vanilla" else cell.method.guidance,
        "training_images": len(cell.train),
        "evaluation": figures,
        "luminance": {
            "wasserstein_1": wasserstein(luminance(images[:N]), luminance(reference.images)),
            "training_set": wasserstein(luminance(cell.train.images), luminance(reference.images)),
        },
        "codes_against_labels": _composition(cell) if own_run and cell.method.kind != "vanilla" else None,
        "calibration": _calibration(cell, sampled) if "weights" in sampled else None,
        "about_codes": _about(cell) if own_run else None,
        "machine": {"system": platform.system(), "machine": platform.machine()},
    }
    return {name: value for name, value in line.items() if value is not None}


def luminance(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean luminance of the cheeks [N] of faces uint8 [N,32,32,3], black to white = 1."""
    rows, columns = CHEEKS
    patch = np.concatenate([images[:, rows, column] for column in columns], axis=2).astype(np.float64) / 255
    return np.asarray((patch @ LUMINANCE).mean(axis=(1, 2)), np.float64)


def wasserstein(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Wasserstein-1 distance of two samples."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a, b))


def _composition(cell: Cell) -> dict[str, Any]:
    """Images of each group in each code, by the labels that discovery never saw: for the reader.

    Where each code is a top code of its own, `top_of` and `share_in_top` are left out.
    """
    tree = json.loads((cell.run / "run" / "codes.json").read_bytes())
    code = np.array(json.loads((cell.run / "run" / "assignment.json").read_bytes())["code"])
    leaves = len(tree["leaves"])
    counts: dict[str, Any] = {}
    for attribute, groups in ATTRIBUTES.items():
        labels = cell.train.labels(attribute)
        counts[attribute] = [np.bincount(labels[code == k], minlength=len(groups)).tolist() for k in range(leaves)]
    top_of = [leaf["top_code"] for leaf in tree["leaves"]]
    if top_of != list(range(leaves)):
        counts |= {"top_of": top_of, "share_in_top": [leaf["share_in_top"] for leaf in tree["leaves"]]}
    return counts


def _calibration(cell: Cell, sampled: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Audits, weights, and the effective number of training images behind the samples.

    Image i of code k has the weight w_k / size_k; the number is (Σ w_i)² / Σ w_i².
    """
    code = np.array(json.loads((cell.run / "run" / "assignment.json").read_bytes())["code"])
    weights = sampled["weights"]
    sizes = np.bincount(code, minlength=len(weights))
    return {
        "weights": weights.tolist(),
        "audits": sampled["audits"].tolist(),
        "effective_training_images": float(1 / (weights**2 / sizes).sum()),
        "audited_by": "judge",
    }


def _about(cell: Cell) -> dict[str, Any] | None:
    path = cell.code_file().with_suffix(".about.json")
    return json.loads(path.read_bytes()) if path.is_file() else None
