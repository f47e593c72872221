"""Figures of a cell and of its VAE, by the shipped judge against balanced reference images, as in `balance.py`."""

import json
import platform
from typing import Any

import numpy as np
from numpy.typing import NDArray
from store import of_evaluation

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.config import DataConfig
from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import labelled
from latent_digits_parts.base import SIDE, reconstruct
from latent_digits_parts.cells import MIN_PER_GROUP, Cell, N

DIGITS = DataConfig(source="digits", image_size=SIDE, channels=3)
VAE_PER_GROUP = MIN_PER_GROUP + 100  # not all that come out of the VAE are of the group that went in


def measure(cell: Cell, bundle: Bundle, sampled: dict[str, NDArray[Any]], judge: Judge) -> dict[str, Any]:
    """Of one cell's line: the evaluation, and the codes against labels that nothing before this line has read."""
    train = data.load(DIGITS.model_copy(update={"source": cell.source}))
    codes = sampled["codes"] if bundle.codes.num_codes else None
    figures = evaluate(
        sampled["images"],
        codes,
        judge,
        cell.groups,
        _reference(cell),
        train.images,
        min_per_group=MIN_PER_GROUP,
        n=N,
    )
    found = None
    if bundle.codes.num_codes:
        top = np.array(bundle.codes.top_of)[json.loads((cell.folder / "run" / "assignment.json").read_bytes())["code"]]
        labels = np.array(train.labels)
        found = {
            "top_sizes": np.bincount(top).tolist(),
            "group_share_in_top": {
                g: [float((labels[top == k] == g).mean()) for k in np.unique(top)] for g in cell.groups
            },
            "stability_ari": list(bundle.training.discovery.stability_ari),
        }
    return {
        "evaluation": of_evaluation(figures.model_dump(mode="json")),
        "codes_against_labels": found,
        "bundle_id": bundle.bundle_id,
        "cpu_s": {step: round(seconds) for step, seconds in cell.spent().items()},
    }


def measure_vae(cell: Cell, judge: Judge) -> dict[str, Any]:
    """What the VAE alone costs: real training images of both digits, in equal numbers, as they are and through it."""
    real = labelled(f"digits:{','.join(cell.groups)}", "train", DIGITS)
    index = np.concatenate([np.flatnonzero(np.array(real.labels) == g)[:VAE_PER_GROUP] for g in cell.groups])
    images = real.images[index]
    through = reconstruct(cell.base(), images)
    error = (images.astype(np.float64) - through) / 127.5
    found = {}
    for name, shown in (("as they are", images), ("through the VAE", through)):
        figures = evaluate(shown, None, judge, cell.groups, _reference(cell), min_per_group=MIN_PER_GROUP)
        found[name] = of_evaluation(figures.model_dump(mode="json"))
    return {"rms_error": float(np.sqrt((error**2).mean())), "evaluations": found}


def machine() -> dict[str, Any]:
    import diffusers
    import onnxruntime
    import torch

    return {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _reference(cell: Cell) -> LabelledImages:
    return labelled(f"digits:{','.join(cell.groups)}", "reference", DIGITS)
