"""Photos as people have them: mixed sizes, EXIF orientation, grey and CMYK. Their mean tells `brightness_judge` all."""

from pathlib import Path

import numpy as np
from PIL import Image

MODES = ("RGB", "L", "CMYK")
TURNED = 6  # EXIF: rotate by 90 degrees to the right


def write_photos(folder: Path, light: str) -> Path:
    """A JPEG for each letter of `light`: "l" is a light one, "d" a dark one. Every fifth is turned by EXIF alone."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i, letter in enumerate(light):
        height, width = rng.integers(20, 90, 2)
        level = 210 if letter == "l" else 40
        pixels = rng.integers(level - 20, level + 20, (height, width), dtype=np.uint8)
        exif = Image.Exif()
        if i % 5 == 0:
            exif[0x0112] = TURNED
        Image.fromarray(pixels).convert(MODES[i % 3]).save(folder / f"{i:03d}.jpg", exif=exif, quality=90)
    return folder
