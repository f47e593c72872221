"""Cartoon faces with exact gender and race, split by a fixed rule, and biased training sets as index selections.

The file is a .npz with `x` uint8 [N,S,S,3], `gender` (0 female, 1 male) and `race` (0 asian, 1 black, 2 brown,
3 white); all eight groups are equally frequent.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "race": ("asian", "black", "brown", "white"),
}
JOINT = tuple(f"{gender} {race}" for gender in ATTRIBUTES["gender"] for race in ATTRIBUTES["race"])
SIDE = 32


@dataclass(frozen=True)
class BiasedSet:
    """A training set in which one attribute is out of balance and the other is not."""

    attribute: str
    shares: tuple[int, ...]  # of the attribute's groups, as a ratio

    @property
    def groups(self) -> tuple[str, ...]:
        return ATTRIBUTES[self.attribute]

    @property
    def smallest(self) -> str:
        return self.groups[int(np.argmin(self.shares))]

    @property
    def score(self) -> str:
        """The score that the bars of this set are in."""
        return "fd_ddm" if len(self.groups) == 2 else "fd_l2"


SETS = {
    "gender 4:1": BiasedSet("gender", (4, 1)),
    "gender 1:4": BiasedSet("gender", (1, 4)),
    "race 8:4:2:1": BiasedSet("race", (8, 4, 2, 1)),
}
DEVELOPMENT = {"gender 2:1": BiasedSet("gender", (2, 1))}  # for choices made before the table


@dataclass(frozen=True)
class Faces:
    """Images uint8 [N,32,32,3] and the joint group of each, index into JOINT, int64 [N]."""

    images: NDArray[np.uint8]
    joint: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)

    def labels(self, attribute: str) -> NDArray[np.int64]:
        """The group of each image within `attribute`, index into ATTRIBUTES[attribute]."""
        return self.joint // 4 if attribute == "gender" else self.joint % 4

    def take(self, index: NDArray[np.int64]) -> "Faces":
        return Faces(self.images[index], self.joint[index])


def read(path: Path) -> Faces:
    """All faces at 32x32: means of squares of pixels."""
    with np.load(path) as arrays:
        x, gender, race = arrays["x"], arrays["gender"].astype(np.int64), arrays["race"].astype(np.int64)
    factor = x.shape[1] // SIDE
    squares = x.reshape(len(x), SIDE, factor, SIDE, factor, 3).astype(np.float32)
    return Faces(np.rint(squares.mean(axis=(2, 4))).astype(np.uint8), gender * 4 + race)


def split(faces: Faces, name: str) -> Faces:
    """The part `train`, `judge` or `reference`: disjoint, equal in size for each joint group, in the file's order.

    45 % of each joint group may be trained on, 39 % train the judge, the rest is the reference and measures it.
    """
    parts = []
    for group in range(len(JOINT)):
        index = np.flatnonzero(faces.joint == group)
        edges = {"train": (0.0, 0.45), "judge": (0.45, 0.84), "reference": (0.84, 1.0)}[name]
        low, high = (round(edge * len(index)) for edge in edges)
        parts.append(index[low:high])
    return faces.take(np.sort(np.concatenate(parts)))


def biased(pool: Faces, what: BiasedSet, images: int = 1250) -> Faces:
    """About `images` faces of `pool` in the ratio of `what`; the other attribute is even."""
    other = len(JOINT) // len(what.groups)
    counts = [round(images * share / sum(what.shares) / other) for share in what.shares]
    own = pool.labels(what.attribute)
    parts = []
    for group in range(len(JOINT)):
        index = np.flatnonzero(pool.joint == group)
        parts.append(index[: counts[own[index[0]]]])
    return pool.take(np.sort(np.concatenate(parts)))


def write_folder(faces: Faces, folder: Path, labels: Sequence[str] | None = None) -> Path:
    """PNG files with metadata.csv (`labels`; None: the joint groups), which `ddm_rt.data` reads in the same order."""
    named = [JOINT[group] for group in faces.joint] if labels is None else labels
    if not (folder / "metadata.csv").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = [("file_name", "label")]
        for i, (image, label) in enumerate(zip(faces.images, named, strict=True)):
            Image.fromarray(image).save(folder / f"{i:05d}.png")
            rows.append((f"{i:05d}.png", label))
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
    return folder
