"""Pages made from the templates beside this file. Style and pictures lie inside a page, so it needs no other file."""

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from ddm_rt.files import atomic_directory

_GAP = 1  # pixels between the pictures of a sheet


def write(
    out_dir: Path, template: str, values: dict[str, object], json_name: str, json: str, **more: tuple[str, str]
) -> Path:
    """Write `template` as index.html, `json` and `more` texts (name of the file, text) beside it, all or none; returns
    the path of index.html.

    All text in `values` is escaped where it enters the page. Raises DdmError when `out_dir` exists and is not empty.
    """
    environment = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "png": png_uri}
    page = environment.get_template(template).render(values)
    with atomic_directory(out_dir) as temporary:
        (temporary / "index.html").write_text(page, encoding="utf-8")
        for name, text in ((json_name, json + "\n"), *more.values()):
            (temporary / name).write_text(text, encoding="utf-8")
    return out_dir / "index.html"


def number(value: float | None, spec: str = ".3f") -> str:
    """`value` as the format `spec` writes it; a dash for None."""
    return "–" if value is None else format(value, spec)


def png_uri(images: NDArray[np.uint8], columns: int) -> str:
    """A data: URI of one PNG that shows images uint8 [N,H,W,3] in rows of `columns`."""
    buffer = io.BytesIO()
    Image.fromarray(sheet(images, columns)).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def sheet(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images [N,H,W,3] side by side in rows of `columns`, transparent elsewhere: RGBA [H', W', 4]."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        canvas[y : y + height, x : x + width, :3] = image
        canvas[y : y + height, x : x + width, 3] = 255
    return canvas
