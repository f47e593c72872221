"""A run on a checkpoint: its configuration, and its images and prompts as the checkpoint's networks encode them."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt import data
from ddm_rt.config import LoraConfig, RunConfig
from ddm_rt.data import Listing
from ddm_rt.errors import DdmError
from ddm_rt.files import write_atomic
from ddm_rt.model.checkpoint.folder import (
    Checkpoint,
    load_base,
    prompt_length,
    read_checkpoint,
    read_tokenizer,
)
from ddm_rt.model.latent import LatentDDM
from ddm_rt.progress import OnFigures
from ddm_rt.train.checkpoint import lora
from ddm_rt.train.checkpoint.cache import Encoded
from ddm_rt.train.checkpoint.model import Captions, LatentSubject, trained_texts
from ddm_rt.train.checkpoint.student import LatentStudent, Teacher
from ddm_rt.train.codes.classes import Views, find_classes
from ddm_rt.train.codes.encoders import encoder_features, is_clip
from ddm_rt.train.disk_cache import CACHE
from ddm_rt.train.trainee import Material

IMAGE_ENCODERS = ("image_encoder", "safety_checker")  # folders of a checkpoint that hold CLIP's vision model
VIEW_SIDE = 64  # most pixels of the images that features are learned from
_SMALLEST = 8  # an image must have this part of the checkpoint's own size a side
_BATCH = 64  # images that a frozen encoder gets at once

_log = logging.getLogger(__name__)


def fields(base: Path, variant: str | None = None) -> dict[str, Any]:
    """Fields of a run's configuration that the checkpoint `base` decides. Raises BundleError where it doesn't do."""
    found = read_checkpoint(base, variant)
    return {
        "model": found.model.model_dump(),
        "schedule": found.schedule.model_dump(),
        "sampling": found.sampling.model_dump(),
        "base": found.base.model_dump(),
        "data.image_size": found.image_size,
        "data.min_side": max(found.image_size // _SMALLEST, 1),
    }


def own_image_encoder(base: Path) -> Path | None:
    """The folder with CLIP's vision model in the checkpoint `base`, where it has one."""
    folders = (base / name for name in IMAGE_ENCODERS)
    return next(filter(is_clip, folders), None)


def prepare_checkpoint(
    config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, OnFigures]
) -> Material:
    """As `train.run.prepare`, for families other than pixels."""
    with torch.device("meta"):
        model = LatentDDM(config.model)
    lora.check_targets(model.unet, config.lora)
    fill = partial(load_base, model)
    return _prepare(config, model, fill, config.lora.text_encoder, out, device, progress, LatentSubject)


def prepare_student(
    config: RunConfig, teacher: Teacher, out: Path, device: torch.device, progress: Mapping[str, OnFigures]
) -> Material:
    """As `prepare_checkpoint`, with `LatentStudent` as the subject. What `out` holds of codes is the teacher's."""
    if config.distill is not None and config.distill.lora is not None:
        lora.check_targets(teacher.model.unet, config.distill.lora)
    make = partial(LatentStudent, teacher)
    return _prepare(config, teacher.model, lambda _: None, False, out, device, progress, make)


def prepare_as_it_is(
    config: RunConfig, model: LatentDDM, out: Path, device: torch.device, progress: Mapping[str, OnFigures]
) -> Material:
    """As `prepare_checkpoint`, of a `model` that nothing is put into and nothing trains."""
    make = partial(_as_it_is, config, model)
    return _prepare(config, model, lambda _: None, False, out, device, progress, make)


def _as_it_is(config: RunConfig, model: LatentDDM, *given: Any) -> LatentSubject:
    *_, captions, _ = given
    return LatentSubject(config.model_copy(update={"lora": LoraConfig(rank=0)}), model, captions, ())


def prompted(config: RunConfig, model: LatentDDM, texts: Sequence[str], base: Path) -> LatentSubject:
    """`model` as it is, conditioned on texts: `condition_on` takes their rows from 1 on, and 0 is the null text."""
    checkpoint = read_checkpoint(base, config.base.variant if config.base else None)
    every, _ = distinct(texts)
    embed = trained_texts(model, token_ids(checkpoint, every), checkpoint.empty_negative_is_zero)
    none = torch.zeros(0, dtype=torch.int64)
    return _as_it_is(config, model, Captions(every, none, embed, none), ())


def _prepare(
    config: RunConfig,
    model: LatentDDM,
    fill: Callable[[Checkpoint], None],
    train_texts: bool,
    out: Path,
    device: torch.device,
    progress: Mapping[str, OnFigures],
    make: Callable[..., LatentSubject],
) -> Material:
    """`model` is filled when all that is cheap has been checked."""
    assert config.base is not None
    base = out / config.base.path
    listing = data.find(config.data)
    texts, text_of = distinct(prompts(listing, config.data.source))
    checkpoint = read_checkpoint(base, config.base.variant)
    encoded = Encoded(out / CACHE, config, _contents(listing, out, config.data.source))
    encoder = config.features.encoder or own_image_encoder(base)
    views = _views(listing, encoder, device, progress)
    if not encoded.has_images(len(listing)):
        views.pixels()  # which reads every image, so that one that doesn't do is found before the costly part
    classes = find_classes(config, listing, views, out)
    ids = token_ids(checkpoint, texts)
    fill(checkpoint)
    latents, frames = encoded.images(model, listing, device, progress.get("encoding"))
    null_is_zero = checkpoint.empty_negative_is_zero
    if train_texts:
        embed = trained_texts(model, ids, null_is_zero)
    else:
        embed = encoded.texts(model, ids, null_is_zero, device)
    captions = Captions(texts, text_of, embed, frames)
    return Material(
        latents,
        classes,
        partial(make, config, model, captions, classes.shared_of),
        listing.labels,
        encoder.name if encoder else None,
        partial(shutil.rmtree, out / CACHE, ignore_errors=True),
    )


def _contents(listing: Listing, out: Path, source: str) -> str:
    """`Listing.contents`, kept in the run. Raises DdmError where the run was begun with other ones."""
    path, contents = out / "images.sha256", listing.contents()
    if not path.is_file():
        write_atomic(path, f"{contents}\n")
    elif path.read_text().strip() != contents:
        raise DdmError(f"{path}: images, prompts or labels of {source} have changed since; choose another --out")
    return contents


def _views(listing: Listing, encoder: Path | None, device: torch.device, progress: Mapping[str, OnFigures]) -> Views:
    """The images at a small size, and as `encoder` sees them."""

    @cache
    def small() -> NDArray[np.uint8]:
        reading = progress.get("reading")
        return listing.images(VIEW_SIDE, None if reading is None else lambda done, total: reading(done, total, {}))

    def batches() -> Iterator[NDArray[np.float32]]:
        features = progress.get("features")
        for start in range(0, len(listing), _BATCH):
            rows = range(start, min(start + _BATCH, len(listing)))
            yield data.to_model(np.stack([listing.read(i).pixels for i in rows]))
            if features is not None:
                features(rows.stop, len(listing), {})

    encoded = None if encoder is None else lambda: encoder_features(batches(), encoder, device)
    return Views(lambda: data.to_model(small()), encoded, device, progress.get("features"))


def prompts(listing: Listing, source: str) -> tuple[str, ...]:
    """The prompt of each image. Raises DdmError where some have none, saying how many and which is the first."""
    if listing.prompts is None:
        raise DdmError(f"data {source}: its images have no prompts; give --prompt, or metadata.csv a column prompt")
    missing = [name for name, prompt in zip(listing.names, listing.prompts, strict=True) if not prompt.strip()]
    if missing:
        raise DdmError(
            f"data {source}: {len(missing)} of {len(listing)} images have no prompt, the first is {missing[0]!r}; "
            "metadata.csv must give each its own, or --prompt one for those without"
        )
    return listing.prompts


def distinct(of_images: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """The texts, the null text "" first, and the row int64 [N] of each image's prompt among them."""
    rows = {text: row for row, text in enumerate(("", *dict.fromkeys(of_images)))}
    return tuple(rows), torch.tensor([rows[prompt] for prompt in of_images])


def token_ids(checkpoint: Checkpoint, texts: Sequence[str]) -> tuple[Tensor, ...]:
    """int64 [P,T] for each text encoder. A text that is longer than an encoder reads is cut, and a warning says so.

    Raises BundleError naming a tokenizer's folder that can't be read.
    """
    found = []
    for folder, encoder in zip(checkpoint.tokenizers, checkpoint.model.text_encoders, strict=True):
        tokenizer = read_tokenizer(folder)
        most = prompt_length(tokenizer, encoder)
        lengths = [len(ids) for ids in tokenizer(list(texts), verbose=False).input_ids]
        if long := [text for text, length in zip(texts, lengths, strict=True) if length > most]:
            _log.warning("prompts that are longer than %d tokens and cut there: %d, first %r", most, len(long), long[0])
        made = tokenizer(list(texts), padding="max_length", truncation=True, max_length=most, return_tensors="pt")
        found.append(made.input_ids)
    return tuple(found)
