"""One judge of the eight joint groups, read one attribute at a time: all are measured in one feature space."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt import data
from ddm_rt.evaluate.judge import Judge, Verdicts
from faces_parts.sets import ATTRIBUTES, JOINT, Faces

STEPS, SEED = 3000, 0


def make(train: Faces, held_out: Faces, path: Path, steps: int = STEPS) -> Judge:
    """Train the judge on `train` and measure it on `held_out`, or open the one that is there."""
    if not path.is_file():
        from ddm_rt.export.classifier import export_classifier
        from ddm_rt.train.judge import confusion, fit

        x = data.to_model(train.images)
        mirrored = np.ascontiguousarray(x[..., ::-1])
        judge = fit(np.concatenate([x, mirrored]), np.tile(train.joint, 2), seed=SEED, steps=steps)
        counts = confusion(judge, data.to_model(held_out.images), held_out.joint)
        about = {"images": len(train), "held_out": len(held_out), "steps": steps, "seed": SEED}
        metadata = {"classes": list(JOINT), "confusion": counts.tolist(), "training": about}
        export_classifier(judge, x.shape[1:], path, {key: json.dumps(value) for key, value in metadata.items()})
    return Judge.load(path)


@dataclass(frozen=True)
class AttributeJudge:
    """The joint judge's verdicts on one attribute: probabilities and confusions are sums over the other one."""

    judge: Any  # Judge
    attribute: str

    @property
    def classes(self) -> tuple[str, ...]:
        return ATTRIBUTES[self.attribute]

    @property
    def confusion(self) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = self._sums().T @ self.judge.confusion @ self._sums()
        return counts

    @property
    def accuracy(self) -> float:
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def name(self) -> str:
        return f"{self.judge.name}: {self.attribute}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.judge, name)

    def predict(self, images: NDArray[np.uint8], batch_size: int = 256) -> Verdicts:
        found = self.judge.predict(images, batch_size)
        probabilities = found.probabilities @ self._sums().astype(np.float32)
        return Verdicts(np.array(self.classes)[probabilities.argmax(axis=1)], probabilities, found.features)

    def _sums(self) -> NDArray[np.int64]:
        """[8, K]: 1 where a joint group belongs to the attribute's group."""
        columns = [[int(group in joint.split()) for group in self.classes] for joint in JOINT]
        return np.array(columns, np.int64)
