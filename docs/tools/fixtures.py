"""Small sets of drawings that stand for a reader's own images where pages are run as tests.

    python docs/tools/fixtures.py photos FOLDER                # colour images without labels
    python docs/tools/fixtures.py labelled FOLDER [FOLDER ...] # with metadata.csv: file_name, label (cat or dog)

Cats are discs and dogs are squares.
"""

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE = 48


def drawing(rng: np.random.Generator, kind: str) -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(120, 256, 3).tolist()))
    ink, corner, size = tuple(rng.integers(0, 100, 3).tolist()), rng.integers(6, 18, 2), rng.integers(14, 24)
    draw = ImageDraw.Draw(image)
    (draw.ellipse if kind == "cat" else draw.rectangle)([*corner.tolist(), *(corner + size).tolist()], fill=ink)
    return image


def write(folder: Path, counts: dict[str, int], seed: int, labels: bool) -> None:
    """Images of each kind, the same for the same seed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    rows = [("file_name", "label")]
    for kind, count in counts.items():
        for _ in range(count):
            rows.append((f"{kind if labels else 'photo'}-{len(rows):03d}.png", kind))
            drawing(rng, kind).save(folder / rows[-1][0])
    if labels:
        with (folder / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def main() -> None:
    match sys.argv[1:]:
        case ["photos", folder]:
            write(Path(folder), {"cat": 48, "dog": 12}, 0, labels=False)
        case ["labelled", *folders] if folders:
            for seed, folder in enumerate(folders, start=1):
                write(Path(folder), {"cat": 40, "dog": 40}, seed, labels=True)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
