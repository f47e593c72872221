"""`ddm-rt discover`: images -> candidate factors, as a page to look at and as factors.json for training."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddm_rt import data
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.report import factors_page
from ddm_rt.evaluate.run import three_channels
from ddm_rt.files import check_free, write_atomic
from ddm_rt.presets import resolve
from ddm_rt.progress import OnFigures
from ddm_rt.train.codes.encoders import encoder_features
from ddm_rt.train.distributed import CPU
from ddm_rt.train.factors import record
from ddm_rt.train.factors.candidates import find_candidates
from ddm_rt.train.factors.record import FACTORS, Cells, FactorsFile, names_sha256
from ddm_rt.train.factors.views import views

_SHOWN_SIDE = 64  # pixels of an image on the page, at most
_BATCH = 256


def discover(
    source: str,
    out: Path,
    fields: Mapping[str, Any],
    *,
    preset: str = "digits",
    features: Path | None = None,
    seed: int = 0,
    progress: Mapping[str, OnFigures] | None = None,
) -> FactorsFile:
    """Find candidate factors of the images `source`, and write index.html and factors.json into the folder `out`.

    `fields` are dotted fields of the configuration of `preset`. `features` adds a view: an encoder, as
    `features.encoder` takes it, or a .npy file of features [N,D] that were computed elsewhere. `progress` may hold
    callbacks "features" and "splits". Raises DdmError for bad input, before anything is written.
    """
    progress = progress or {}
    check_free(out)
    config = resolve(preset, {"data.source": source, "train.seed": seed, **fields})
    torch.set_num_threads(config.train.threads)
    images = data.load(config.data)
    pixels = images.latent_input()
    encoded = None
    if features is not None and features.suffix == ".npy":
        given = _given(features, len(images))
        encoded = partial(np.array, given)
    elif features is not None:
        batches = [pixels[i : i + _BATCH] for i in range(0, len(pixels), _BATCH)]
        encoded = partial(encoder_features, batches, features, CPU)
    seen = views(pixels, config.features, seed, encoded, progress.get("features"))
    candidates = find_candidates(seen, config.codes, seed, progress.get("splits"))
    found = FactorsFile(
        data=config.data,
        names_sha256=names_sha256(images.names),
        seed=seed,
        factors=record.described(candidates, seed),
    )
    shown = [data.shrunk(image, _SHOWN_SIDE) for image in three_channels(images.images)]
    cards = [
        factors_page.FactorCard(
            **factor.model_dump(exclude={"label", "examples", "name", "values"}),
            examples=[np.stack([shown[i] for i in side]) for side in factor.examples],
        )
        for factor in found.factors
    ]
    told = factors_page.Told(source, config.data.image_size, config.data.channels, len(images), list(seen))
    factors_page.write(out, told, cards, found.model_dump_json(), FACTORS)
    return found


def accept(
    out: Path,
    numbers: Sequence[int],
    names: Mapping[int, tuple[str, tuple[str, ...]]],
    cells: Cells = "auto",
) -> FactorsFile:
    """Write into `out`/factors.json which candidates a person accepted, and what they are called.

    Raises DdmError naming what is wrong; the file is as before then.
    """
    path = out / FACTORS
    found = record.accept(record.read_factors(path), numbers, names, cells)
    record.check(found, "--accept")
    write_atomic(path, found.model_dump_json() + "\n")
    return found


def _given(path: Path, images: int) -> NDArray[np.float32]:
    """Features [N,D] of a .npy file. Raises DdmError where they are not those of so many images, or not finite."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DdmError(f"--features {path}: not a .npy file of numbers ({error})") from error
    if array.ndim != 2 or len(array) != images or not np.issubdtype(array.dtype, np.floating):
        raise DdmError(f"--features {path}: {array.dtype} {list(array.shape)}; expected floats [{images}, D]")
    found: NDArray[np.float32] = array.astype(np.float32)
    if not np.isfinite(found).all():
        raise DdmError(f"--features {path}: its features are not finite")
    unit: NDArray[np.float32] = found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
    return unit
