"""A run on a checkpoint: its configuration, and its images and prompts as the checkpoint's networks encode them."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddm_rt import data
from ddm_rt.bundle import write_atomic
from ddm_rt.config import RunConfig
from ddm_rt.data import Listing
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.model.checkpoint import load_base, read_checkpoint
from ddm_rt.model.latent import LatentDDM
from ddm_rt.train import lora, text
from ddm_rt.train.classes import Views, find_classes
from ddm_rt.train.encoded import Cache
from ddm_rt.train.encoders import Features, encoder_features
from ddm_rt.train.features import Progress
from ddm_rt.train.latent import LatentSubject, encoded_live
from ddm_rt.train.loop import TrainingSet
from ddm_rt.train.material import Material

IMAGE_ENCODER = "image_encoder"  # folder of a checkpoint that has CLIP's vision model
VIEW_SIDE = 64  # pixels of the images that features are learned from
_SMALLEST = 8  # an image must have this part of the checkpoint's own size a side
_BATCH = 64  # images that a frozen encoder gets at once


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


def prepare_checkpoint(
    config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, Progress]
) -> Material:
    """As `material.prepare`, for families other than pixels."""
    assert config.base is not None
    listing = data.find(config.data)
    texts, text_of = text.distinct(text.prompts(listing, config.data.source))
    checkpoint = read_checkpoint(out / config.base.path, config.base.variant)
    with torch.device("meta"):
        model = LatentDDM(config.model)
    lora.check_targets(model.unet, config.lora)
    load_base(model, checkpoint)
    contents = listing.contents()
    _same_images(out / "images.sha256", contents, config.data.source)
    cache = Cache.of(out / "cache", config, contents)

    small: list[Any] = []

    def views() -> Any:
        if not small:
            small.append(listing.images(VIEW_SIDE, _counted(progress.get("reading"))))
        return data.to_model(small[0])

    encoder = config.features.encoder
    own = out / config.base.path / IMAGE_ENCODER
    if encoder is None and own.is_dir():
        encoder = own
    encoded = None if encoder is None else lambda: _encoded(listing, encoder, device, progress.get("features"))
    if not cache.has_images(len(listing)):
        views()  # reads every image: one that doesn't do is found before the costly part
    found = find_classes(config, listing, Views(views, encoded), out, device, progress.get("features"))
    latents, frames = cache.images(model, listing, device, progress.get("encoding"))
    ids = text.token_ids(checkpoint, texts)
    if config.lora.text_encoder:
        embed = encoded_live(model, ids, checkpoint.empty_negative_is_zero)
    else:
        rows = cache.texts(model, ids, checkpoint.empty_negative_is_zero, device)
        embed = lambda index: {name: part.take(index) for name, part in rows.items()}
    subject = LatentSubject(config, model, embed, text_of, frames, found.top_of)
    return Material(
        TrainingSet(latents, found.y, found.count, found.top_of, found.shares),
        listing.labels,
        subject,
        clear=lambda: shutil.rmtree(out / "cache", ignore_errors=True),
    )
