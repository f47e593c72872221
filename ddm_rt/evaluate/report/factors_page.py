"""Candidate factors for a person to look at: strips of images of each side, and the command that accepts them."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddm_rt.evaluate.report import page

COLUMNS = 10

# What the page always says, whatever was found.
LIMITS = (
    "A candidate is a way to split these images. Nobody has confirmed that it is a split that you mean.",
    "Candidates stand in the order of how much the other views know of them, which rates large clear splits highest.",
    "Agreement is how well other views of the images find the same split (adjusted Rand index, 1 is the same). "
    "Stability is how well bootstrap samples find a branch again. A wrong split can be stable: look at the images.",
    "A split that you have in mind may be missing. Then label 64 images, and train with --indicator probe --labels "
    "FILE.",
    "Accept what you would name. Evening out one split moves others; the column on moves says by how much.",
)


@dataclass(frozen=True)
class FactorCard:
    """One candidate: `examples` are images uint8 [m,H,W,3] of each side, drawn at random."""

    number: int
    view: str
    rule: str
    agreement: float
    known: float
    stability: float | None
    sizes: tuple[int, ...]
    overlap: Mapping[str, float]
    effective_images: float
    moves: Mapping[str, tuple[float, float]]
    examples: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class Told:
    """What was looked at: the source as `--data` takes it, its images, and the views of them."""

    source: str
    image_size: int
    channels: int
    images: int
    views: Sequence[str]


def write(out: Path, told: Told, cards: Sequence[FactorCard], factors: str, name: str) -> Path:
    """The page index.html, and the file `name` with the text `factors`, in the new folder `out`; returns the page."""
    values = {
        "title": f"Ways to split {told.source}",
        "images": told.images,
        "views": ", ".join(told.views),
        "cards": cards,
        "limits": LIMITS,
        "columns": COLUMNS,
        "out": str(out),
        "folder": shlex.quote(str(out)),
        "train": f"--data {shlex.quote(told.source)} --image-size {told.image_size} --channels {told.channels}",
        "letters": "abcdefghij",
    }
    return page.write(out, "factors.html", values, name, factors)
