"""Audits: images to be judged by a person, and the CSV file that comes back.

An audit set is a folder as `sample` writes it (images, manifest.json), with contact sheets that show each image's
number, audit.csv to fill in, and audit.json, which says what the groups are. A plain `sample` folder serves too, with
an audit.csv beside its manifest.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddm_rt.config import Frozen, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.files import atomic_directory
from ddm_rt.sample.balance.quota import Quota
from ddm_rt.sample.calibration.groups import Attribute, check
from ddm_rt.sample.generation import Generation, encoded
from ddm_rt.sample.manifest import Manifest, read_manifest

UNSURE = "?"  # in a group's place: can't be told
_SHEET_IMAGES = 64  # of one contact sheet
_CELL = (64, 192)  # pixels: images on a sheet are enlarged to the first, and shrunk to the second
_LABEL = 14  # pixels below each image, for its number


class AuditSet(Frozen):
    """audit.json."""

    attributes: tuple[Attribute, ...]
    scope: str | None = None


@dataclass(frozen=True)
class Audit:
    """A filled audit.csv: for each audited image its seed, code and groups (None: can't be told)."""

    path: Path
    manifest: Manifest
    attributes: tuple[Attribute, ...]
    scope: str | None
    images: tuple[tuple[int, int, tuple[str, ...] | None], ...]


def stratified(base: NDArray[np.float64], n: int) -> list[int]:
    """Codes of n images, as evenly as possible over the codes of positive weight; heavier ones get what is left over.

    They come in rounds over all codes, so that a person who labels them sees no blocks of one code.
    """
    order = [int(code) for code in np.argsort(-base, kind="stable") if base[code] > 0]
    return [order[i % len(order)] for i in range(n)]


def by_weights(weights: NDArray[np.float64], n: int) -> list[int]:
    """Codes of n images in the shares `weights` [K]."""
    return Quota([float(weight) for weight in weights]).assign(n)


def write(generation: Generation, attributes: Sequence[Attribute], out: Path, scope: str | None = None) -> Path:
    """Write the audit set into `out`: all of it or nothing. Returns the audit.csv to fill in.

    Raises DdmError where `out` exists and isn't an empty directory.
    """
    files = [str(record["file"]) for record in generation.manifest["images"]]
    with atomic_directory(out) as folder:
        generation.write_into(folder)
        for number, start in enumerate(range(0, len(files), _SHEET_IMAGES), start=1):
            rows = slice(start, start + _SHEET_IMAGES)
            sheet = numbered_sheet(generation.images[rows], [Path(name).stem for name in files[rows]])
            (folder / f"contact_sheet_{number:02d}.png").write_bytes(encoded(sheet, xmp=generation.xmp()))
        described = AuditSet(attributes=tuple(attributes), scope=scope)
        (folder / "audit.json").write_text(described.model_dump_json(indent=1) + "\n")
        with (folder / "audit.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", *(attribute.name for attribute in attributes)])
            writer.writerows([name, *("" for _ in attributes)] for name in files)
    return out / "audit.csv"


def numbered_sheet(images: NDArray[np.uint8], labels: Sequence[str]) -> NDArray[np.uint8]:
    """Images [n, H, W, 3] in a grid on white, each above its label; uint8 [H', W', 3]."""
    from PIL import Image, ImageDraw

    height, width = images.shape[1:3]
    scale = max(_CELL[0] / min(height, width), 1) if max(height, width) < _CELL[1] else _CELL[1] / max(height, width)
    fitted = (max(round(width * scale), 1), max(round(height * scale), 1))
    columns = math.ceil(math.sqrt(len(images)))
    right, down = fitted[0] + 4, fitted[1] + _LABEL + 4
    sheet = Image.new("RGB", (columns * right, math.ceil(len(images) / columns) * down), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        left, top = i % columns * right + 2, i // columns * down + 2
        sheet.paste(Image.fromarray(pixels).resize(fitted, Image.Resampling.BICUBIC), (left, top))
        draw.text((left, top + fitted[1] + 1), label, fill="black")
    return np.asarray(sheet)


def read(path: Path, attributes: Sequence[Attribute] | None = None) -> Audit:
    """A filled audit.csv, with the manifest.json beside it.

    Groups are those of `attributes`, or of the audit.json beside it, or, without either, whatever the file holds.
    Images of the set that have no row weren't audited.

    Raises DdmError naming the line for an unknown image, one that is listed twice, a group that is missing or unknown,
    and naming the file where it isn't CSV with a column `image` and one per attribute.
    """
    if not path.is_file():
        raise DdmError(f"{path}: no such file; expected the audit.csv of an audit set")
    manifest = read_manifest(path.parent / "manifest.json")
    beside = path.parent / "audit.json"
    described = parse_json(AuditSet, beside.read_bytes(), beside) if beside.is_file() else None
    if described is not None:
        check(described.attributes, str(beside))
    known = attributes or (None if described is None else described.attributes)
    rows, columns = _rows(path)
    if known is None:
        known = check([_seen(column, rows) for column in columns], str(path))
    elif set(columns) != {attribute.name for attribute in known}:
        names = ", ".join(attribute.name for attribute in known)
        raise DdmError(f"{path}: its columns are image, {', '.join(columns)}; expected image, {names}")
    made = {image.file: image for image in manifest.images}
    images: list[tuple[int, int, tuple[str, ...] | None]] = []
    lines: dict[str, int] = {}
    for line, row in rows.items():
        name = row["image"].strip()
        if name not in made:
            raise DdmError(f"{path}: line {line}: image {name!r} is not in {path.parent / 'manifest.json'}")
        if name in lines:
            raise DdmError(f"{path}: line {line}: image {name!r} stands on line {lines[name]} too; expected one row")
        lines[name] = line
        images.append((made[name].seed, made[name].code, _groups(path, line, row, known)))
    return Audit(path, manifest, tuple(known), None if described is None else described.scope, tuple(images))


def _rows(path: Path) -> tuple[dict[int, Mapping[str, str]], list[str]]:
    """Rows by line number, and the names of the columns beside `image`."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="")
            columns = [name.strip() for name in reader.fieldnames or ()]
            if columns[:1] != ["image"] or len(columns) < 2 or len(set(columns)) != len(columns) or "" in columns:
                raise DdmError(
                    f"{path}: its columns are {', '.join(columns) or '(none)'}; expected image, then one per attribute"
                )
            reader.fieldnames = columns
            rows: dict[int, Mapping[str, str]] = {}
            for row in reader:
                if row.get(""):
                    raise DdmError(f"{path}: line {reader.line_num}: more values than columns")
                rows[reader.line_num] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise DdmError(f"{path}: not a CSV file in UTF-8 ({error})") from error
    if not rows:
        raise DdmError(f"{path}: no rows; expected one for each audited image")
    return rows, columns[1:]


def _seen(column: str, rows: Mapping[int, Mapping[str, str]]) -> Attribute:
    values = {row[column].strip() for row in rows.values()} - {"", UNSURE}
    return Attribute(name=column, groups=tuple(sorted(values)))


def _groups(path: Path, line: int, row: Mapping[str, str], known: Sequence[Attribute]) -> tuple[str, ...] | None:
    groups = []
    for attribute in known:
        group = row[attribute.name].strip()
        expected = f"expected one of {', '.join(attribute.groups)}, or {UNSURE} where it can't be told"
        if not group:
            raise DdmError(f"{path}: line {line}: {row['image'].strip()} has no {attribute.name}; {expected}")
        if group != UNSURE and group not in attribute.groups:
            raise DdmError(f"{path}: line {line}: {attribute.name} is {group!r}; {expected}")
        groups.append(group)
    return None if UNSURE in groups else tuple(groups)
