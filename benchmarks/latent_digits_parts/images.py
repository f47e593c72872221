"""The biased set as a folder of images with prompts, as a user would have it."""

import csv
from pathlib import Path

from PIL import Image

from ddm_rt import data
from ddm_rt.config import DataConfig
from ddm_rt.files import atomic_directory

PROMPT = "a handwritten digit"  # what is sampled with
PROMPTS = (PROMPT, "a photo of a handwritten digit", "one digit, white on black", "handwriting: a single number")


def write_folder(source: str, side: int, folder: Path) -> Path:
    """`source` (digits:CLASSES@RATIO) as PNG files and metadata.csv, if it isn't there.

    Prompts take turns and name no digit; labels are in no file.
    """
    if folder.is_dir():
        return folder
    found = data.load(DataConfig(source=source, image_size=side, channels=3))
    with atomic_directory(folder) as draft:
        rows = []
        for i, image in enumerate(found.images):
            name = f"{i:05d}.png"
            Image.fromarray(image).save(draft / name)
            rows.append((name, PROMPTS[i % len(PROMPTS)]))
        with (draft / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "prompt"), *rows])
    return folder
