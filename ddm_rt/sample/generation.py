"""What a request gives back, and how it is written to disk."""

import io
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.files import atomic_directory
from ddm_rt.sample.provenance import told

_SHEET_IMAGES = 256
_SHEET_PIXELS = 2**25
_SHEET_GAP = 2  # pixels


class Cancelled(Exception):
    """Sampling was cancelled: the `cancel` of a call returned true, and the call stopped between two steps."""


@dataclass(frozen=True, eq=False)
class Generation:
    """The images of a request, with what each of them was made of."""

    images: NDArray[np.uint8]  # [n, H, W, 3], RGB
    codes: tuple[int, ...]  # one for each image; -1 is the null code
    manifest: dict[str, Any]  # what manifest.json holds: bundle, request, settings, and seed and code of each image

    @property
    def seed(self) -> int:
        """The request's seed: with it, the same request gives the same images. Image i has `derive(seed, i)`."""
        seed: int = self.manifest["request"]["seed"]
        return seed

    def save(self, out: str | Path) -> Path:
        """Write the images as PNG files, contact_sheet.png and manifest.json into the directory `out`, and return it.

        All files are written, or none. Raises DdmError where `out` exists and isn't an empty directory, or can't be
        written.
        """
        out = Path(out)
        try:
            with atomic_directory(out) as folder:
                self.write_into(folder)
                (folder / "contact_sheet.png").write_bytes(encoded(contact_sheet(self.images), xmp=self.xmp()))
        except OSError as error:
            raise DdmError(f"{out}: cannot be written ({error.strerror}); nothing was left there") from error
        return out

    def write_into(self, folder: Path) -> None:
        """Write the images as PNG files and manifest.json into `folder`, which must be there. Files are overwritten."""
        for record, image in zip(self.manifest["images"], self.images, strict=True):
            (folder / record["file"]).write_bytes(encoded(image, xmp=self.xmp(record)))
        (folder / "manifest.json").write_text(json.dumps(self.manifest, indent=1, allow_nan=False) + "\n")

    def xmp(self, record: dict[str, Any] | None = None) -> bytes | None:
        """What the file of an image says of itself, by its record in the manifest, or that of a sheet of all images.
        None where the request wanted nothing said.
        """
        return told(self.manifest, record)


def contact_sheet(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The first images of [n, H, W, 3] in a square grid on white, uint8 [H', W', 3]: up to 256, or 32 megapixels."""
    height, width = images.shape[1:3]
    down, right = height + _SHEET_GAP, width + _SHEET_GAP
    n = min(len(images), _SHEET_IMAGES, max(_SHEET_PIXELS // (down * right), 1))
    columns = math.ceil(math.sqrt(n))
    sheet = np.full((math.ceil(n / columns) * down + _SHEET_GAP, columns * right + _SHEET_GAP, 3), 255, np.uint8)
    for i, image in enumerate(images[:n]):
        top, left = i // columns * down + _SHEET_GAP, i % columns * right + _SHEET_GAP
        sheet[top : top + height, left : left + width] = image
    return sheet


def encoded(image: NDArray[np.uint8], file_format: str = "png", xmp: bytes | None = None, **options: Any) -> bytes:
    """A file's bytes of one image, uint8 [H, W, 3], with an XMP packet where there is one. `file_format` is "png",
    "webp" or "jpeg", and `options` are those that Pillow has for it.
    """
    from PIL import Image, PngImagePlugin  # here, because only saving needs it

    if xmp is not None and file_format == "png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", xmp.decode())
    elif xmp is not None:
        options["xmp"] = xmp
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format=file_format, **options)
    return buffer.getvalue()
