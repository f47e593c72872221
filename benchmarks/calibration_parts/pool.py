"""A large pool of generated, judged images per code, from which audits are drawn again and again."""

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.continuous import slant
from ddm_rt.evaluate.judge import Judge
from ddm_rt.files import write_atomic
from ddm_rt.sample.loop.noise import derive
from ddm_rt.sample.pipeline import Pipeline

PER_CODE = 1024  # images; the first half is drawn from by audits, the second says what a code really gives
SEED = 20_000


def make(bundle: str, judge: str, work: Path) -> list[dict[str, list[float] | list[str]]]:
    """For each code its images' labels, slants and thicknesses; codes that are in `work` already are read."""
    pipeline, loaded = Pipeline.load(bundle, backend="onnxruntime", threads=1), Judge.load(judge)
    return [_code(pipeline, loaded, code, work) for code in range(pipeline.bundle.codes.num_codes)]


def _code(pipeline: Pipeline, judge: Judge, code: int, work: Path) -> dict[str, list[float] | list[str]]:
    path = work / f"{pipeline.bundle.bundle_id[:12]}_{code:03d}.json"
    if not path.is_file():
        made = pipeline.generate(n=PER_CODE, seed=derive(SEED, code), codes=[code] * PER_CODE)
        record = {
            "labels": judge.predict(made.images).labels.tolist(),
            "slant": slant(made.images).tolist(),
            "thickness": thickness(made.images).tolist(),
        }
        write_atomic(path, json.dumps(record))
        print(f"code {code}: {PER_CODE} images", flush=True)
    read: dict[str, list[float] | list[str]] = json.loads(path.read_bytes())
    return read


def sizes(bundle: str) -> tuple[list[int], list[float]]:
    """Training images of each code, and its weight in the tree's uniform target."""
    codes = Bundle.load(bundle).codes
    return [leaf.size for leaf in codes.leaves], [leaf.share_in_top / codes.num_top_codes for leaf in codes.leaves]


def thickness(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean width of the strokes of images [N,H,W,3] in pixels: twice the ink over the length of its outline."""
    ink = images[..., 0].astype(np.float64) / 255
    rise = np.hypot(np.diff(ink, axis=1)[:, :, :-1], np.diff(ink, axis=2)[:, :-1, :])
    return np.asarray(2 * ink.sum((1, 2)) / np.maximum(rise.sum((1, 2)), 1e-9))
