"""Candidate factors for a person to look at: strips of images of each side, and the command that accepts them."""

import json
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
    "Stability is how well a bootstrap sample finds it again. A wrong split can be stable: look at the images.",
    "A split that you have in mind may be missing. Then label 64 images and train with --indicator probe.",
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
    stability: float
    sizes: tuple[int, ...]
    overlap: Mapping[str, float]
    effective_images: float
    moves: Mapping[str, tuple[float, float]]
    examples: Sequence[NDArray[np.uint8]]


def write(
    out: Path, source: str, images: int, views: Sequence[str], cards: Sequence[FactorCard], factors: str, name: str
) -> Path:
    """The page index.html, and the file `name` with the text `factors`, in the new folder `out`; returns the page."""
    values = {
        "title": f"Ways to split {source}",
        "images": images,
        "views": ", ".join(views),
        "cards": cards,
        "limits": LIMITS,
        "columns": COLUMNS,
        "out": str(out),
        "letters": "abcdefghij",
        "sides": json.dumps({card.number: len(card.sizes) for card in cards}),
    }
    return page.write(out, "factors.html", values, name, factors)
