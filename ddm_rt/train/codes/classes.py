"""The class of each image that the indicator head learns: a code, found or given, or a label."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_rt.config import IndicatorMode, RunConfig, parse_json
from ddm_rt.data import ImageSet, Listing
from ddm_rt.errors import DdmError
from ddm_rt.files import write_atomic, write_json
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import Codes
from ddm_rt.train.codes.contrastive import contrastive_features, feature_sets
from ddm_rt.train.codes.discover import discover
from ddm_rt.train.codes.from_file import SUM_TOLERANCE, GivenCodes, read_codes
from ddm_rt.train.codes.probe import probe, read_labels
from ddm_rt.train.trainee import Classes

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Views:
    """The images as code discovery looks at them; made on use."""

    pixels: Callable[[], Floats]  # [N, C, H, W] in [-1, 1], for features that are learned from them
    encoded: Callable[[], Floats] | None  # [N, D] unit features of a frozen encoder, where there is one


def find_classes(
    config: RunConfig,
    images: ImageSet | Listing,
    views: Views,
    out: Path,
    device: torch.device,
    progress: OnFigures | None = None,
) -> Classes:
    """Classes of `images` by `train.indicator`; writes codes.json, and assignment.json where there are codes.

    Codes that `out` already holds are taken as they are. Raises DdmError for labels, codes or features that don't fit
    the images.
    """
    mode = config.train.indicator
    if mode in (IndicatorMode.CODES, IndicatorMode.PROBE):
        codes, assignment = _codes(config, images, views, out, device, progress)
        return Classes(torch.from_numpy(assignment), codes.num_codes, codes.top_of, _shares(codes))
    write_atomic(out / "codes.json", Codes(origin="none").model_dump_json(indent=1))
    if mode is IndicatorMode.NONE:
        return Classes()
    if images.labels is None:
        raise DdmError(f"train.indicator is labels, but {config.data.source} has no labels (metadata.csv: label)")
    if "" in images.labels:
        raise DdmError(f"metadata.csv: {images.names[images.labels.index('')]!r} has no label")
    names = sorted(set(images.labels))
    return Classes(torch.tensor([names.index(label) for label in images.labels]), len(names))


def _codes(
    config: RunConfig,
    images: ImageSet | Listing,
    views: Views,
    out: Path,
    device: torch.device,
    progress: OnFigures | None,
) -> tuple[Codes, NDArray[np.int64]]:
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
        found = feature_sets(views.pixels(), config.features, seed, progress, device, encoded)
        codes, assignment = probe(found, labels, seed)
    else:
        if views.encoded is not None:
            features = views.encoded()
        else:
            features = contrastive_features(views.pixels(), config.features, seed, progress, device)
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
