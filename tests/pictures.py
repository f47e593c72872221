"""Two kinds of small drawings, as arrays and as a folder of PNG files: what tests train on in seconds."""

import csv
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

KINDS = ("across", "down")


def drawings(count: int, size: int = 16, seed: int = 0) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """uint8 [count, size, size], a horizontal or a vertical bar at a random place, 3:1; and the kind of each."""
    rng = np.random.default_rng(seed)
    images = np.zeros((count, size, size), np.uint8)
    kinds = tuple(KINDS[int(i % 4 == 3)] for i in range(count))
    for image, kind in zip(images, kinds, strict=True):
        start = rng.integers(1, size - 4)
        canvas = image if kind == "across" else image.T
        canvas[start : start + 3, 2:-2] = rng.integers(160, 256)
    return images, kinds


def write_folder(folder: Path, count: int = 40, size: int = 16, *, labels: bool = True, seed: int = 0) -> Path:
    """The drawings as PNG files, with metadata.csv where `labels`."""
    folder.mkdir(parents=True)
    images, kinds = drawings(count, size, seed)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03d}.png")
    if labels:
        with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("file_name", "label"))
            writer.writerows((f"{i:03d}.png", kind) for i, kind in enumerate(kinds))
    return folder


def write_captions(folder: Path, prompts: Sequence[str]) -> None:
    """metadata.csv with a prompt for each image of `folder`, in turn."""
    names = sorted(path.name for path in folder.glob("*.png"))
    with (folder / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "prompt"), *zip(names, itertools.cycle(prompts))])
