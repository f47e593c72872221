"""What a judge does to a picture before it looks, as Hugging Face's preprocessor_config.json states it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from ddm_rt.config import Frozen, Positive, parse
from ddm_rt.errors import DdmError

FILE = "preprocessor_config.json"
_FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's number, which the files hold
# Processors that only resize, crop, rescale and normalise; those to whom one number as a size means the shorter edge.
_SQUARE = ("ViT", "DeiT", "Siglip", "Pvt")
_SHORTER = ("CLIP", "Bit", "MobileNetV1", "MobileNetV2", "ConvNext")
_CROPS = ("CLIP", "Bit", "DeiT", "MobileNetV1", "MobileNetV2")  # where the file doesn't say
_CROP_PCT = 224 / 256  # ConvNext's, where its file has none
_WARPS = 384  # pixels from which ConvNext's resizes without a crop


class Preprocessing(Frozen):
    """Resize, crop, scale, normalise; what is None isn't done. Heights come before widths."""

    size: tuple[Positive, Positive] | None = None
    shortest_edge: Positive | None = None  # in the place of `size`: both edges scaled alike
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"] = "bilinear"  # Pillow's filter
    crop: tuple[Positive, Positive] | None = None  # from the centre; what it lacks is black
    scale: float = Field(default=1 / 255, gt=0)
    mean: tuple[float, ...] | None = None  # of 3 colours, or 1
    std: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        lengths = [None if each is None else len(each) for each in (self.mean, self.std)]
        if lengths[0] != lengths[1] or lengths[0] not in (None, 1, 3) or 0 in (self.std or ()):
            raise ValueError("mean and std must have 3 numbers each (or 1), std without zeros")
        for name, edges in (("size", self.size), ("crop", self.crop)):
            if edges is not None and edges[0] * edges[1] > _most_pixels():
                raise ValueError(f"{name} is {edges[0]}x{edges[1]}; expected at most {_most_pixels()} pixels")
        return self

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """float32 [C,H,W] of an image in RGB or L: what transformers' processors give on Pillow, within rounding.

        Raises DdmError for an image so long that it would be resized to more pixels than Pillow reads.
        """
        if (wanted := self._resized(image)) is not None:
            image = image.resize(wanted[::-1], Image.Resampling[self.resample.upper()])
        pixels = np.atleast_3d(np.asarray(image))  # [H, W, C]
        if self.crop is not None:
            pixels = _centre(pixels, self.crop)
        x = (pixels.transpose(2, 0, 1) * self.scale).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(each, np.float32)[:, None, None] for each in (self.mean, self.std))
            x = (x - mean) / std
        return np.ascontiguousarray(x)

    def _resized(self, image: Image.Image) -> tuple[int, int] | None:
        if self.shortest_edge is None:
            return self.size
        short = min(image.size)
        height, width = (int(self.shortest_edge * edge / short) for edge in (image.height, image.width))
        if height * width > _most_pixels():
            raise DdmError(
                f"{image.width}x{image.height} pixels would be resized to {width}x{height}; "
                f"expected at most {_most_pixels()} pixels"
            )
        return height, width

    @property
    def output(self) -> tuple[int, int] | None:
        """Height and width of what comes out; None where that depends on the image."""
        return self.crop or (self.size if self.shortest_edge is None else None)

    def __str__(self) -> str:
        parts = []
        if self.shortest_edge is not None:
            parts.append(f"resize the shorter edge to {self.shortest_edge} ({self.resample})")
        elif self.size is not None:
            parts.append(f"resize to {self.size[0]}x{self.size[1]} ({self.resample})")
        if self.crop is not None:
            parts.append(f"crop the centre {self.crop[0]}x{self.crop[1]}")
        parts.append(f"multiply by {self.scale:.6g}")
        if self.mean is not None and self.std is not None:
            mean, std = (", ".join(f"{value:.4g}" for value in each) for each in (self.mean, self.std))
            parts.append(f"subtract {mean}, divide by {std}")
        return "; ".join(parts)


def from_processor(tree: Any, where: str | Path) -> Preprocessing:
    """Of the fields in a preprocessor_config.json. Raises DdmError for a processor that does more than `Preprocessing`,
    and naming the field that is missing or isn't what it should be.
    """
    if not isinstance(tree, dict):
        raise DdmError(f"{where}: expected an object with fields such as size, image_mean and image_std")
    tree = {name: value for name, value in tree.items() if value is not None}
    kind = str(tree.get("image_processor_type") or tree.get("feature_extractor_type") or "")
    for ending in ("Pil", "Fast", "ImageProcessor", "FeatureExtractor"):
        kind = kind.removesuffix(ending)
    if kind and kind not in _SQUARE + _SHORTER:
        raise DdmError(
            f"{where}: the processor {kind} is unknown here; known: {', '.join(sorted(_SQUARE + _SHORTER))}. If it "
            "only resizes, crops, rescales and normalises, state that in a file without image_processor_type "
            "(--preprocessing FILE)"
        )
    if tree.get("do_pad"):
        raise DdmError(f"{where}: field do_pad is true; padding is unknown here")
    fields: dict[str, Any] = {"resample": _filter(tree, where)}
    if tree.get("do_resize", True):
        fields |= _size(tree, kind, where)
    if tree.get("do_center_crop", kind in _CROPS) and kind != "ConvNext":
        edges = _edges(tree.get("crop_size", {"height": 224, "width": 224}), "crop_size", where)
        if "shortest_edge" in edges:
            raise DdmError(f"{where}: field crop_size is {tree['crop_size']!r}; expected height and width")
        fields["crop"] = edges["height"], edges["width"]
    fields["scale"] = _number(tree, "rescale_factor", 1 / 255, where) if tree.get("do_rescale", True) else 1.0
    if tree.get("do_normalize", True):
        for name, field in (("mean", "image_mean"), ("std", "image_std")):
            fields[name] = _numbers(tree, field, where)
        if len(fields["mean"]) != len(fields["std"]) or not all(fields["std"]):
            raise DdmError(f"{where}: fields image_mean and image_std must be alike in length, image_std without zeros")
    return parse(Preprocessing, fields, where)


def _most_pixels() -> int:
    """That Pillow reads: above, it sees a decompression bomb."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)


def _size(tree: Mapping[str, Any], kind: str, where: str | Path) -> dict[str, Any]:
    default = "shortest_edge" if kind in _SHORTER else "square"
    edges = _edges(tree.get("size"), "size", where, default)
    if kind == "ConvNext":
        side = edges.get("shortest_edge") or edges["height"]
        if side >= _WARPS:
            return {"size": (side, side)}
        crop_pct = _number(tree, "crop_pct", _CROP_PCT, where)
        return {"shortest_edge": int(side / crop_pct), "crop": (side, side)}
    if "shortest_edge" in edges:
        return {"shortest_edge": edges["shortest_edge"]}
    return {"size": (edges["height"], edges["width"])}


def _edges(value: Any, field: str, where: str | Path, one: str = "square") -> dict[str, int]:
    """`height` and `width`, or `shortest_edge`. One number is what `one` says."""
    if _is_count(value):
        value = {"shortest_edge": value} if one == "shortest_edge" else {"height": value, "width": value}
    if isinstance(value, dict):
        found = {name: edge for name, edge in value.items() if edge is not None}
        if found.keys() in ({"height", "width"}, {"shortest_edge"}) and all(map(_is_count, found.values())):
            return found
    raise DdmError(f"{where}: field {field} is {value!r}; expected height and width, shortest_edge, or one number")


def _filter(tree: Mapping[str, Any], where: str | Path) -> str:
    number = tree.get("resample", 2)
    if not isinstance(number, int) or not 0 <= number < len(_FILTERS):
        raise DdmError(f"{where}: field resample is {number!r}; expected one of Pillow's filters, 0 to 5")
    return _FILTERS[number]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def _number(tree: Mapping[str, Any], field: str, default: float, where: str | Path) -> float:
    value = tree.get(field, default)
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise DdmError(f"{where}: field {field} is {value!r}; expected a positive number")
    return float(value)


def _numbers(tree: Mapping[str, Any], field: str, where: str | Path) -> tuple[float, ...]:
    values = tree.get(field)
    if not isinstance(values, list) or len(values) not in (1, 3) or any(type(v) not in (int, float) for v in values):
        raise DdmError(f"{where}: field {field} is {values!r}; expected 3 numbers (1 for grey images)")
    return tuple(map(float, values))


def _centre(pixels: NDArray[Any], crop: tuple[int, int]) -> NDArray[Any]:
    """The centre of pixels [H,W,C], on black where they are too small."""
    missing = [max(0, want - have) for want, have in zip(crop, pixels.shape, strict=False)]
    if any(missing):  # as transformers: the odd pixel of black goes before
        pixels = np.pad(pixels, [*((-(-m // 2), m // 2) for m in missing), (0, 0)])
    top, left = ((have - want) // 2 for want, have in zip(crop, pixels.shape, strict=False))
    return pixels[top : top + crop[0], left : left + crop[1]]
