"""One cell: a method on a biased set. Its model is trained and exported; its images are sampled and kept."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import RunConfig
from ddm_rt.files import write_json
from ddm_rt.presets import resolve
from faces_parts import calibration, code_files
from faces_parts.judging import AttributeJudge
from faces_parts.methods import GUIDANCE, Method
from faces_parts.sets import DEVELOPMENT, SETS, BiasedSet, Faces, biased, split, write_folder

N, SEED, AUDIT_SEED = 1000, 0, 500_000
AUDIT_POOL = 4000  # images that audits are drawn from: 250 a code
MIN_PER_GROUP = {"gender": 200, "race": 120}  # for distances at equal n
MAX_IMAGES = 4000
BUDGET: dict[str, Any] = {
    "preset": "faces-bench",
    "data.image_size": 32,
    "data.channels": 3,
    "train.steps": 1200,
    "train.threads": 1,
}


def slug(text: str) -> str:
    return text.replace(":", "to").replace(",", "").replace("#", "").replace(" ", "_")


class Cell:
    """Paths and steps of one cell under the folder `work`; every step is skipped where its file is there."""

    def __init__(self, faces: Faces, what: str, method: Method, work: Path) -> None:
        self.name, self.what, self.method, self.work = what, (SETS | DEVELOPMENT)[what], method, work
        self.train = biased(split(faces, "train"), self.what)
        self.folder = work / slug(what)
        self.run = self.folder / "runs" / slug(method.run)
        self.images_path = self.folder / "images" / f"{slug(method.name)}.npz"

    def config(self) -> RunConfig:
        """Writes the data folder and the codes file that it names."""
        overrides: dict[str, Any] = {"data.source": str(write_folder(self.train, self.folder / "data"))}
        overrides["train.indicator"] = "none" if self.method.kind == "vanilla" else "codes"
        if self.method.kind != "vanilla":
            path = self.code_file()
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                made, about = code_files.make(self.train, self.what, self.method, self.folder / "features")
                write_json(path.with_suffix(".about.json"), about)
                write_json(path, made)
            overrides["codes.source"] = str(path)
        return resolve("digits-bench", BUDGET | overrides)

    def code_file(self) -> Path:
        return self.folder / "codes" / f"{slug(self.method.run)}.json"

    def fit(self, progress: Any = None) -> Bundle:
        """The trained bundle; cells that share it wait for one another."""
        from ddm_rt.export.run import export_run
        from ddm_rt.train.run import train

        with _one_at_a_time(self.run):
            if not (self.run / "bundle").is_dir():
                train(self.config(), self.run / "run", progress={"train": progress} if progress else None)
                export_run(self.run / "run", self.run / "bundle")
        return Bundle.load(self.run / "bundle")

    def sample(self, bundle: Bundle, judge: Any) -> dict[str, NDArray[Any]]:
        """`images` [M,32,32,3] and `codes` [M]: the first N are the cell's, the others only fill up the groups."""
        if not self.images_path.is_file():
            from ddm_rt.sample.pipeline import Pipeline

            pipeline = Pipeline.load(bundle, backend="onnxruntime", threads=1)
            target, extra = "uniform", {}
            if self.method.kind == "calibrated":
                target, extra = self._calibrated(pipeline, judge)
            found = _generate(
                pipeline, AttributeJudge(judge, self.what.attribute), self.what, target, self.method.guidance
            )
            self.images_path.parent.mkdir(parents=True, exist_ok=True)
            draft = self.images_path.with_suffix(".draft.npz")
            np.savez(draft, **found, **extra)
            draft.rename(self.images_path)
        with np.load(self.images_path) as arrays:
            return dict(arrays)

    def pool(self, pipeline: Any) -> dict[str, NDArray[Any]]:
        """Images of every code in equal numbers, other seeds than the cell's: what audits are drawn from."""
        guidance = self.method.guidance  # an audit holds for the guidance that its images were made with
        suffix = "" if guidance == GUIDANCE else f"_{guidance:g}"
        path = self.folder / "images" / f"audit_pool{suffix}.npz"
        with _one_at_a_time(path):
            if not path.is_file():
                made = pipeline.generate(n=AUDIT_POOL, seed=AUDIT_SEED, indicator_guidance_scale=guidance)
                path.parent.mkdir(parents=True, exist_ok=True)
                draft = path.with_suffix(".draft.npz")
                np.savez(draft, images=made.images, codes=np.array(made.codes, np.int64))
                draft.rename(path)
        with np.load(path) as arrays:
            return dict(arrays)

    def _calibrated(self, pipeline: Any, judge: Any) -> tuple[str, dict[str, NDArray[Any]]]:
        """The target that audits by the judge give (an audit by judge: its verdicts stand in for a person's)."""
        pool = self.pool(pipeline)
        verdicts = AttributeJudge(judge, self.what.attribute).predict(pool["images"]).probabilities.argmax(axis=1)
        rng = np.random.default_rng([self.method.count, self.method.draw])
        base = None
        if self.method.by_size:
            sizes = np.array([leaf.size for leaf in pipeline.bundle.codes.leaves], float)
            base = sizes / sizes.sum()
        weights, counts = calibration.audit(
            pool["codes"], verdicts, self.method.count, len(self.what.groups), rng, base
        )
        weights = np.round(weights, 9)
        weights[weights.argmax()] += 1 - weights.sum()
        target = ",".join(f"code:{k}={weight:.9f}" for k, weight in enumerate(weights))
        return target, {"weights": weights, "audits": counts}


def _generate(
    pipeline: Any, judge: AttributeJudge, what: BiasedSet, target: str, guidance: float
) -> dict[str, NDArray[Any]]:
    """N images, and more until each group has enough of them by the judge, or there are MAX_IMAGES."""
    images, codes = [], []
    while True:
        part = pipeline.generate(n=N, seed=SEED + len(images), target=target, indicator_guidance_scale=guidance)
        images.append(part.images)
        codes.append(np.array(part.codes, np.int64))
        verdicts = judge.predict(np.concatenate(images)).labels
        least = min(int((verdicts == group).sum()) for group in what.groups)
        if least >= MIN_PER_GROUP[what.attribute] or N * len(images) >= MAX_IMAGES:
            return {"images": np.concatenate(images), "codes": np.concatenate(codes)}


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
