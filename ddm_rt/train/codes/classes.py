"""The class of each image that the indicator head learns: a code, found or given, or a label."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from ddm_rt.config import Frozen, IndicatorMode, RunConfig, parse_json
from ddm_rt.data import ImageSet, Listing
from ddm_rt.errors import DdmError
from ddm_rt.files import read, write_atomic, write_json
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import Codes
from ddm_rt.train.codes.contrastive import contrastive_features, feature_sets
from ddm_rt.train.codes.discover import describe, discover
from ddm_rt.train.codes.probe import probe, read_labels
from ddm_rt.train.factors.crossing import cross
from ddm_rt.train.factors.record import is_factors, names_sha256, read_factors
from ddm_rt.train.trainee import Classes

Floats = NDArray[np.float32]

SUM_TOLERANCE = 1e-6
Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class GivenCodes(Frozen):
    """A codes file that someone else made; without `top_code` each code is a top code of its own."""

    code: tuple[Number, ...] = Field(min_length=1)  # of each image
    top_code: tuple[Number, ...] | None = None  # of each code
    share_in_top: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None  # of each code; None: by size


@dataclass(frozen=True)
class Views:
    """The images as code discovery looks at them; made on use."""

    pixels: Callable[[], Floats]  # [N, C, H, W] in [-1, 1], for features that are learned from them
    encoded: Callable[[], Floats] | None  # [N, D] unit features of a frozen encoder, where there is one
    device: torch.device  # that features are learned on
    progress: OnFigures | None = None  # of learning them


def find_classes(config: RunConfig, images: ImageSet | Listing, views: Views, out: Path) -> Classes:
    """Classes of `images` by `train.indicator`; writes codes.json, and assignment.json where there are codes.

    Codes that `out` already holds are taken as they are. Raises DdmError for labels, codes or features that don't fit
    the images.
    """
    mode = config.train.indicator
    if mode in (IndicatorMode.CODES, IndicatorMode.PROBE):
        codes, assignment = _codes(config, images, views, out)
        crossing = codes.shared_of if codes.factors else ()
        return Classes(torch.from_numpy(assignment), codes.num_codes, codes.top_of, _shares(codes), crossing)
    write_atomic(out / "codes.json", Codes(origin="none").model_dump_json(indent=1))
    if mode is IndicatorMode.NONE:
        return Classes()
    if images.labels is None:
        raise DdmError(f"train.indicator is labels, but {config.data.source} has no labels (metadata.csv: label)")
    if "" in images.labels:
        raise DdmError(f"metadata.csv: {images.names[images.labels.index('')]!r} has no label")
    names = sorted(set(images.labels))
    return Classes(torch.tensor([names.index(label) for label in images.labels]), len(names))


def _codes(config: RunConfig, images: ImageSet | Listing, views: Views, out: Path) -> tuple[Codes, NDArray[np.int64]]:
    """The codes in the run directory, else discovered (or read from `codes.source`) and written there."""
    path, assignment_path = out / "codes.json", out / "assignment.json"
    if path.is_file() and assignment_path.is_file():
        codes = parse_json(Codes, path.read_bytes(), path)
        there = parse_json(GivenCodes, assignment_path.read_bytes(), assignment_path)
        if len(there.code) != len(images):
            raise DdmError(
                f"{assignment_path}: made from {len(there.code)} images; {config.data.source} has {len(images)}"
            )
        return codes, np.array(there.code, np.int64)
    seed = config.train.seed
    if config.codes.source is not None:
        codes, assignment = read_codes(config.codes.source, images)
    elif config.codes.labels is not None:
        labels = read_labels(config.codes.labels, images)
        encoded = views.encoded() if views.encoded is not None else None
        found = feature_sets(views.pixels(), config.features, seed, views.progress, views.device, encoded)
        codes, assignment = probe(found, labels, seed)
    else:
        if views.encoded is not None:
            features = views.encoded()
        else:
            features = contrastive_features(views.pixels(), config.features, seed, views.progress, views.device)
        codes, assignment = discover(features, config.codes, seed)
    write_json(assignment_path, {"code": assignment.tolist()})
    write_atomic(path, codes.model_dump_json(indent=1))
    return codes, assignment


def _shares(codes: Codes) -> tuple[float, ...]:
    """The share of each code in its top code where it isn't just its share of the images, for balanced minibatches."""
    sizes = np.array([leaf.size for leaf in codes.leaves], float)
    by_size = sizes / np.bincount(codes.top_of, weights=sizes)[list(codes.top_of)]
    shares = tuple(leaf.share_in_top for leaf in codes.leaves)
    return () if np.allclose(shares, by_size, rtol=0, atol=SUM_TOLERANCE) else shares


def read_codes(path: Path, images: ImageSet | Listing) -> tuple[Codes, NDArray[np.int64]]:
    """Codes of the accepted factors of a factors.json, or codes that someone else made: JSON
    `{"code": [per image], "top_code": [per code], "share_in_top": [per code]}`.

    Raises DdmError when the file doesn't give one code for each image and one top code for each code, or the shares of
    a top code's codes don't sum to 1 (within 1e-6).
    """
    where = f"codes.source {path}"
    content = read(path, "expected a JSON file", where=where)
    if is_factors(content):
        return _of_factors(path, images)
    given = parse_json(GivenCodes, content, where)
    if len(given.code) != len(images):
        raise DdmError(f"{where}: field code has {len(given.code)} entries for {len(images)} images")
    count = len(set(given.code))
    if max(given.code) >= count:
        raise DdmError(f"{where}: field code must use every number from 0 on; there are {count} different ones")
    top_of = given.top_code if given.top_code is not None else tuple(range(count))
    if len(top_of) != count:
        raise DdmError(f"{where}: field top_code has {len(top_of)} entries for {count} codes")
    if max(top_of) >= len(set(top_of)):
        raise DdmError(f"{where}: field top_code must use every number from 0 on")
    assignment = np.array(given.code, np.int64)
    codes = describe(assignment, np.array(top_of, np.int64), origin=f"file:{path.name}")
    if given.share_in_top is not None:
        if len(given.share_in_top) != count:
            raise DdmError(f"{where}: field share_in_top has {len(given.share_in_top)} entries for {count} codes")
        totals = np.bincount(top_of, weights=given.share_in_top)
        if (off := np.abs(totals - 1) > SUM_TOLERANCE).any():
            top = int(off.argmax())
            raise DdmError(f"{where}: field share_in_top sums to {totals[top]:.9g} in top code {top}; expected 1")
        leaves = zip(codes.leaves, given.share_in_top, strict=True)
        codes = codes.model_copy(
            update={"leaves": tuple(leaf.model_copy(update={"share_in_top": share}) for leaf, share in leaves)}
        )
    return codes, assignment


def _of_factors(path: Path, images: ImageSet | Listing) -> tuple[Codes, NDArray[np.int64]]:
    found = read_factors(path)
    if len(found.factors[0].label) != len(images) or found.names_sha256 != names_sha256(images.names):
        raise DdmError(
            f"codes.source {path}: made of {len(found.factors[0].label)} images of {found.data.source}; "
            f"the {len(images)} images here are others"
        )
    if not found.accepted:
        raise DdmError(
            f"codes.source {path}: no factor is accepted; look at index.html beside it, then "
            f"`ddm-rt discover --out {path.parent} --accept NUMBER`"
        )
    return cross(found.chosen, found.cells, f"factors:{path.name}")
