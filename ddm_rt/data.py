"""Images in: the shipped digits, or a folder of image files. Imbalance is an index selection, nothing else."""

import csv
import hashlib
import json
import lzma
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ddm_rt.config import DataConfig
from ddm_rt.errors import DdmError
from ddm_rt.files import asset, sha256

DIGITS = ("0", "1", "3", "7", "8")
DIGITS_FILE = "digits.xz"  # MNIST, CC BY-SA 3.0: see NOTICE
SPLITS = ("train", "judge", "reference")  # disjoint: generators, judges and yardsticks never share an image
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# What PIL raises for damaged files, besides its own errors (which are OSErrors).
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_SOURCE = re.compile(r"digits(?::(?P<classes>[^@]*))?(?:@(?P<ratio>.*))?")


@dataclass(frozen=True)
class Picture:
    """One image as the model sees it, and how it was cut from the original."""

    pixels: NDArray[np.uint8]  # [H, W, C]
    frame: tuple[int, int, int, int, int, int]  # original height and width; crop's top and left; height and width


@dataclass(frozen=True)
class Listing:
    """What a source holds, its images unread. Labels, prompts: None where it has none, "" where an image has none."""

    names: tuple[str, ...]
    labels: tuple[str, ...] | None
    prompts: tuple[str, ...] | None
    read: Callable[[int], Picture]  # raises DdmError naming an image that is unreadable or too small
    contents: Callable[[], str]  # sha256 over names, image files, labels and prompts

    def __len__(self) -> int:
        return len(self.names)

    def images(self, most: int | None = None, progress: Callable[[int, int], None] | None = None) -> NDArray[np.uint8]:
        """All of them, uint8 [N, H, W, C], shrunk to at most `most` pixels a side."""
        found = []
        for i in range(len(self)):
            found.append(shrunk(self.read(i).pixels, most))
            if progress is not None:
                progress(i + 1, len(self))
        return np.stack(found)


@dataclass(frozen=True)
class ImageSet:
    """Images as the model sees them. Labels are None where the source has none; training never reads them."""

    images: NDArray[np.uint8]  # [N, H, W, C]
    labels: tuple[str, ...] | None
    names: tuple[str, ...]
    prompts: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.images)

    def latent_input(self) -> NDArray[np.float32]:
        """[N, C, H, W] in [-1, 1]."""
        return to_model(self.images)


def to_model(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 [N,H,W,C] -> float32 [N,C,H,W] in [-1, 1]."""
    scaled = images.astype(np.float32).transpose(0, 3, 1, 2) / np.float32(127.5) - np.float32(1)
    return np.ascontiguousarray(scaled)


def shrunk(pixels: NDArray[np.uint8], most: int | None) -> NDArray[np.uint8]:
    """A square image uint8 [H, W, C] at no more than `most` pixels a side."""
    if most is None or len(pixels) <= most:
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(image.resize((most, most), Image.Resampling.LANCZOS)).reshape(most, most, -1)


def load(config: DataConfig, split: str = "train") -> ImageSet:
    """The images that `config.source` names, read. Raises DdmError as `find` does and for an unreadable image."""
    found = find(config, split)
    return ImageSet(found.images(), found.labels, found.names, found.prompts)


def find(config: DataConfig, split: str = "train") -> Listing:
    """What `config.source` names: `digits:CLASSES@RATIO`, or a folder.

    `config.prompt` is the prompt of images that have none. Raises DdmError for a folder without images, fewer than two
    images, metadata.csv that doesn't fit them, unknown classes, or a ratio that the data can't give.
    """
    if config.source == "digits" or config.source.startswith(("digits:", "digits@")):
        return _digits(config, split)
    return _folder(Path(config.source), config)


def _digits(config: DataConfig, split: str) -> Listing:
    match = _SOURCE.fullmatch(config.source)
    if match is None:
        raise DdmError(f"data {config.source!r}: expected digits:CLASSES@RATIO, for example digits:3,8@4:1")
    if split not in SPLITS:
        raise DdmError(f"data split {split!r} is unknown; splits: {', '.join(SPLITS)}")
    classes = tuple(match["classes"].split(",")) if match["classes"] is not None else DIGITS
    unknown = [name for name in classes if name not in DIGITS]
    if unknown or len(set(classes)) != len(classes):
        raise DdmError(f"data {config.source!r}: classes must be distinct and among {', '.join(DIGITS)}")
    if config.image_size < 28:
        raise DdmError(f"data.image_size is {config.image_size}; digits are 28x28 and are padded, never shrunk")
    raw = lzma.decompress(asset(DIGITS_FILE).read_bytes())
    images, labels = _parse_digits(raw, split)
    per_class = {name: np.flatnonzero(labels == int(name)) for name in classes}
    counts = _ratio_counts(config.source, match["ratio"], [len(per_class[name]) for name in classes])
    index = np.concatenate([per_class[name][:n] for name, n in zip(classes, counts, strict=True)])
    margin = config.image_size - 28
    pad = (margin // 2, margin - margin // 2)
    padded = np.pad(images[index], ((0, 0), pad, pad))[..., None]
    pixels = np.repeat(padded, config.channels, axis=-1)
    side = config.image_size
    names = tuple(f"digits/{split}/{i}" for i in index)
    digits = tuple(str(labels[i]) for i in index)
    prompts = None if config.prompt is None else (config.prompt,) * len(index)
    return Listing(
        names=names,
        labels=digits,
        prompts=prompts,
        read=lambda i: Picture(pixels[i], (side, side, 0, 0, side, side)),
        contents=lambda: _digest(names, (hashlib.sha256(image).hexdigest() for image in pixels), digits, prompts),
    )


def _parse_digits(raw: bytes, split: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The asset is rows of 1 + 784 bytes (label, pixels), with one leading row of three uint32 split sizes."""
    sizes = np.frombuffer(raw, "<u4", 3)
    rows = np.frombuffer(raw, np.uint8, offset=12).reshape(-1, 785)
    start = int(sizes[: SPLITS.index(split)].sum())
    part = rows[start : start + int(sizes[SPLITS.index(split)])]
    return part[:, 1:].reshape(-1, 28, 28), part[:, 0].astype(np.int64)


def _ratio_counts(source: str, ratio: str | None, available: list[int]) -> list[int]:
    """The largest counts within `available` that have the ratio exactly."""
    if ratio is None:
        return available
    parts = ratio.split(":")
    if len(parts) != len(available) or not all(re.fullmatch(r"[1-9]\d{0,5}", part) for part in parts):
        raise DdmError(
            f"data {source!r}: ratio {ratio!r} must be {len(available)} positive whole numbers joined by ':', "
            "one for each class"
        )
    weights = [int(part) for part in parts]
    unit = min(have // weight for have, weight in zip(available, weights, strict=True))
    if unit < 1:
        raise DdmError(f"data {source!r}: ratio {ratio} can't be had from {available} images")
    return [unit * weight for weight in weights]


def _folder(path: Path, config: DataConfig) -> Listing:
    try:
        there = path.is_dir()
    except OSError:  # a name too long for the file system
        there = False
    if not there:
        raise DdmError(f"data {str(path)!r}: no such folder, and not digits:CLASSES@RATIO")
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
    if len(files) < 2:
        raise DdmError(f"data {path}: {len(files)} images found; expected at least 2 ({' '.join(SUFFIXES)})")
    names = tuple(f.relative_to(path).as_posix() for f in files)
    table = metadata(path / "metadata.csv", set(names), complete=config.prompt is None)
    labels, prompts = (tuple(table.get(name, {}).get(key, "") for name in names) for key in ("label", "prompt"))
    if config.prompt is not None:
        prompts = tuple(prompt if prompt.strip() else config.prompt for prompt in prompts)
    return Listing(
        names=names,
        labels=labels if any(labels) else None,
        prompts=prompts if any(prompts) else None,
        read=lambda i: _read(files[i], config),
        contents=lambda: _digest(names, map(_file_digest, files), labels, prompts),
    )


def _read(file: Path, config: DataConfig) -> Picture:
    side = config.image_size
    upright = read_upright(file, "L" if config.channels == 1 else "RGB")
    width, height = upright.size
    if min(width, height) < config.min_side:
        raise DdmError(
            f"{file}: is {width}x{height} pixels; expected at least {config.min_side} a side (data.min_side)"
        )
    fitted = ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS)
    scale = side / min(width, height)
    top, left = (round((edge * scale - side) / 2) for edge in (height, width))
    pixels = np.asarray(fitted).reshape(side, side, config.channels)
    return Picture(pixels, (height, width, top, left, side, side))


def read_upright(
    file: Path | BytesIO, mode: str = "RGB", name: Path | None = None, ground: str | None = None
) -> Image.Image:
    """An image as a person sees it: turned as its EXIF says, 8 bits. What is transparent lies on the colour `ground`,
    or is as opaque as its colours say. Raises DdmError naming the file (`name`) where it can't be read.
    """
    try:
        with Image.open(file) as image:
            upright = _eight_bit(ImageOps.exif_transpose(image))
            if ground is not None and upright.has_transparency_data:
                clear = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", clear.size, ground), clear)
            return upright.convert(mode)
    except _UNREADABLE as error:
        raise DdmError(f"{name or file}: not a readable image ({error})") from error


def _file_digest(file: Path) -> str:
    try:
        return sha256(file)
    except OSError as error:
        raise DdmError(f"{file}: not a readable image ({error})") from error


def _digest(names: Iterable[str], digests: Iterable[str], *columns: Iterable[str] | None) -> str:
    rows = zip(names, digests, *(column for column in columns if column is not None), strict=True)
    return hashlib.sha256(json.dumps([list(row) for row in rows]).encode()).hexdigest()


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit greys scaled to 8: PIL's own conversion cuts them off at 255. Raises OSError for float pixels."""
    if image.mode == "F":
        raise OSError("its pixels are floats; expected 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).clip(0, 65535)
    return Image.fromarray(np.rint(levels / 257).astype(np.uint8))


def metadata(path: Path, names: set[str], *, complete: bool) -> dict[str, dict[str, str]]:
    """metadata.csv: `file_name`, and `label` or `prompt`; where `complete`, every image must have its row."""
    if not path.is_file():
        return {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DdmError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows or "file_name" not in rows[0]:
        raise DdmError(f"{path}: expected a header with the column file_name, and label or prompt")
    table: dict[str, dict[str, str]] = {}
    for line, row in enumerate(rows, start=2):
        name = row["file_name"] or ""
        if name in table:
            raise DdmError(f"{path}: line {line}: {name!r} is listed twice")
        if name not in names:
            raise DdmError(f"{path}: line {line}: {name!r} is not an image in {path.parent}")
        table[name] = {key: value or "" for key, value in row.items() if key}
    missing = sorted(names - set(table))
    if missing and complete:
        raise DdmError(f"{path}: {missing[0]!r} has no row ({len(missing)} images are missing)")
    return table
