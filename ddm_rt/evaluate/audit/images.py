"""The images of an audit: any folder's, or those that a bundle makes. One is in memory at a time."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddm_rt import data
from ddm_rt.config import NULL_CODE
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.record import Fact
from ddm_rt.files import read
from ddm_rt.sample.generation import Generation
from ddm_rt.sample.manifest import Manifest, read_manifest

METADATA = "metadata.csv"
MANIFEST = "manifest.json"
_ORIENTATION = 0x0112  # EXIF's tag
_NAMED = 20  # files that are named where many are left out


@dataclass(frozen=True)
class Picture:
    """An image as a person sees it, and what its file is like."""

    image: Image.Image  # RGB
    sha256: str
    kind: str  # "JPEG, CMYK"
    turned: bool
    clear: bool = False  # has transparency, which is laid on white


@dataclass(frozen=True)
class Material:
    """Images to audit, unread. `columns` hold a text for each image ("" where it has none)."""

    title: str
    names: tuple[str, ...]
    read: Callable[[int], Picture]  # raises DdmError naming an image that can't be read
    columns: Mapping[str, tuple[str, ...]]
    codes: NDArray[np.int64] | None
    identity: tuple[Fact, ...]
    passed_over: str = "0"  # files that by their names are no images
    outside: int = 0  # images that are links to files elsewhere


def find(folder: Path) -> Material:
    """The images below a folder; with a manifest.json of `ddm-rt sample`, those that it names, with prompts and codes.

    Raises DdmError for a folder without images, and for a metadata.csv or manifest.json that doesn't fit them.
    """
    if not folder.is_dir():
        raise DdmError(f"{folder}: no such folder of images")
    manifest = read_manifest(folder / MANIFEST) if _sampled(folder) else None
    if manifest is not None:
        names = tuple(record.file for record in manifest.images)
        files = [folder / name for name in names]
        columns, codes, identity = of_manifest(manifest)
    else:
        files, others = _files(folder)
        names = tuple(shown(file.relative_to(folder).as_posix()) for file in files)
        columns, codes, identity = {}, None, ()
    if not names:
        raise DdmError(f"{folder}: no images found; expected at least one file of {' '.join(data.SUFFIXES)}")
    table = data.metadata(folder / METADATA, set(names), complete=False)
    heads = {head for row in table.values() for head in row} - {"file_name"}
    columns |= {head: tuple(table.get(name, {}).get(head, "").strip() for name in names) for head in sorted(heads)}
    return Material(
        title=shown(folder.resolve().name),
        names=names,
        read=lambda i: read_picture(files[i]),
        columns=columns,
        codes=codes,
        identity=identity,
        passed_over="0" if manifest is not None else others,
        outside=sum(file.is_symlink() and not file.resolve().is_relative_to(folder.resolve()) for file in files),
    )


def shown(name: str) -> str:
    """A name of a file that may be no UTF-8, as text that can be written."""
    return name.encode("utf-8", "backslashreplace").decode()


def _files(folder: Path) -> tuple[list[Path], str]:
    """Images below `folder` in the order of their names, and how many other files there are of which ending.

    A link to a folder isn't followed, and a file that is no regular one isn't opened: both are other files.
    """
    files, others = [], Counter[str]()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        folder_itself = path.is_dir() and not path.is_symlink()
        if folder_itself or str(inside) == METADATA or any(part.startswith(".") for part in inside.parts):
            continue
        if path.is_dir():
            others["links to folders"] += 1
        elif path.exists() and not path.is_file():
            others["neither file nor folder"] += 1
        elif path.suffix.lower() in data.SUFFIXES:
            files.append(path)
        else:
            others[shown(path.suffix.lower()) or "without an ending"] += 1
    return files, ", ".join(f"{count} {ending}" for ending, count in others.most_common()) or "0"


def of_generation(made: Generation, title: str) -> Material:
    """Images that a bundle just made."""
    columns, codes, identity = of_manifest(Manifest.model_validate(made.manifest))

    def picture(i: int) -> Picture:
        pixels = np.ascontiguousarray(made.images[i])
        return Picture(Image.fromarray(pixels), hashlib.sha256(pixels.tobytes()).hexdigest(), "made here, RGB", False)

    names = tuple(str(record["file"]) for record in made.manifest["images"])
    return Material(title, names, picture, columns, codes, identity)


def of_manifest(manifest: Manifest) -> tuple[dict[str, tuple[str, ...]], NDArray[np.int64] | None, tuple[Fact, ...]]:
    """Columns, codes (None where all are the null code) and identity."""
    request, images = manifest.request, manifest.images
    prompts = tuple(image.prompt or _only(request.prompt) for image in images)
    columns = {"prompt": prompts} if any(prompts) else {}
    codes = np.array([image.code for image in images], np.int64)
    facts = {
        "bundle id": manifest.bundle_id,
        "calibration id": manifest.calibration_id,
        "sampler": manifest.sampler,
        "steps": manifest.num_steps,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "seed of the images": request.seed,
        "target of the quota": manifest.target,
        "versions": ", ".join(f"{name} {number}" for name, number in manifest.versions.items()),
    }
    identity = tuple(Fact(name=name, value=str(value)) for name, value in facts.items() if value is not None)
    return columns, None if (codes == NULL_CODE).all() else codes, identity


def _only(prompt: object) -> str:
    return prompt if isinstance(prompt, str) else ""


def _sampled(folder: Path) -> bool:
    """Whether a manifest of ours lies there: other programs write files of that name too."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        tree = json.loads(read(folder / MANIFEST, "expected JSON"))
    except ValueError:
        return False
    return isinstance(tree, dict) and "bundle_id" in tree


def read_picture(path: Path) -> Picture:
    """Raises DdmError naming the file where it is no image that can be read."""
    content = read(path, "expected an image")
    image = data.read_upright(BytesIO(content), name=path, ground="white")
    with Image.open(BytesIO(content)) as head:
        kind, turned = f"{head.format}, {head.mode}", head.getexif().get(_ORIENTATION, 1) != 1
        clear = head.has_transparency_data
    return Picture(image, hashlib.sha256(content).hexdigest(), kind, turned, clear)


@dataclass
class Census:
    """What the files are like, counted while they are read."""

    kinds: Counter[str] = field(default_factory=Counter)
    digests: dict[str, str] = field(default_factory=dict)  # of each name
    sides: list[tuple[int, int]] = field(default_factory=list)
    turned: int = 0
    clear: int = 0
    unreadable: list[str] = field(default_factory=list)

    def add(self, name: str, picture: Picture) -> None:
        self.kinds[picture.kind] += 1
        self.digests[name] = picture.sha256
        self.sides.append(picture.image.size)
        self.turned += picture.turned
        self.clear += picture.clear

    @property
    def repeated(self) -> int:
        """Images that are the same file as an earlier one."""
        return len(self.digests) - len(set(self.digests.values()))

    @property
    def left_out(self) -> str:
        return _named(self.unreadable)

    def facts(self, material: Material) -> tuple[Fact, ...]:
        (widths, heights), kinds = zip(*self.sides, strict=True), self.kinds.most_common()
        rows = json.dumps(sorted(self.digests.items()))
        found = {
            "images": str(len(self.digests)),
            "sha256 of names and files": hashlib.sha256(rows.encode()).hexdigest(),
            "formats": "; ".join(f"{count} {kind}" for kind, count in kinds),
            "widths and heights": f"{min(widths)} to {max(widths)} by {min(heights)} to {max(heights)} pixels",
            "turned as EXIF says": str(self.turned),
            "transparent, laid on white": str(self.clear),
            "links to files outside the folder": str(material.outside),
            "exact copies of another image": str(self.repeated),
            "left out as unreadable": self.left_out,
            "other files, by their endings": material.passed_over,
        }
        return tuple(Fact(name=name, value=value) for name, value in found.items())


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more if names else "0"
