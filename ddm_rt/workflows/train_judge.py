"""`ddm-rt train-judge`: images that no generator sees -> classifier -> ONNX with its confusion matrix inside."""

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np

import ddm_rt
from ddm_rt import data
from ddm_rt.config import DataConfig, parse
from ddm_rt.errors import DdmError
from ddm_rt.export.classifier import export_classifier
from ddm_rt.progress import OnFigures
from ddm_rt.train.judge import confusion, fit


def make_judge(
    source: str,
    held_out: str | None,
    out: Path,
    *,
    steps: int,
    seed: int,
    image_size: int,
    channels: int,
    progress: OnFigures | None = None,
) -> float:
    """Train on `source` (digits: the judge split), measure on `held_out` (digits: the reference split), write `out`.

    Returns the held-out accuracy. Raises DdmError when either has no labels or their classes differ.
    """
    if held_out is None:
        if not source.startswith("digits"):
            raise DdmError("--held-out: a folder of labelled images that the judge isn't trained on is needed")
        held_out = source
    sets = []
    for name, split in ((source, "judge"), (held_out, "reference")):
        fields = {"source": name, "image_size": image_size, "channels": channels}
        images = data.load(parse(DataConfig, fields, "data"), split)
        if images.labels is None:
            raise DdmError(f"{name}: a judge needs labels (metadata.csv: file_name,label)")
        sets.append(images)
    classes = sorted(set(sets[0].labels or ()))
    if classes != sorted(set(sets[1].labels or ())):
        raise DdmError(f"{held_out}: its classes must be those of {source}: {', '.join(classes)}")
    (x, y), (x_out, y_out) = (
        (s.latent_input(), np.array([classes.index(label) for label in s.labels or ()], np.int64)) for s in sets
    )
    on_loss = None if progress is None else lambda done, loss: progress(done, steps, {"loss": loss})
    judge = fit(x, y, seed=seed, steps=steps, progress=on_loss)
    counts = confusion(judge, x_out, y_out)
    metadata = {
        "classes": json.dumps(classes),
        "confusion": json.dumps(counts.tolist()),
        "training": json.dumps(
            {
                "ddm_rt": ddm_rt.__version__,
                "torch": version("torch"),
                "source": source,
                "split": "judge" if source.startswith("digits") else None,
                "held_out": held_out,
                "held_out_split": "reference" if held_out.startswith("digits") else None,
                "images": len(x),
                "steps": steps,
                "seed": seed,
            }
        ),
    }
    export_classifier(judge, x.shape[1:], out, metadata)
    return float(np.trace(counts) / counts.sum())
