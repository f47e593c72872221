"""What a run is trained on and what it trains: of pixels directly, of a checkpoint by way of its encoders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ddm_rt import data
from ddm_rt.config import Family, RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.model.unet import DDM
from ddm_rt.progress import OnFigures
from ddm_rt.train.codes.classes import Views, find_classes
from ddm_rt.train.codes.encoders import encoder_features
from ddm_rt.train.loop import TrainingSet
from ddm_rt.train.trainee import Subject


@dataclass(frozen=True)
class Material:
    """`subject` None: the configuration's pixel model, from random weights."""

    data: TrainingSet
    labels: tuple[str, ...] | None  # of the images, for the provenance alone
    subject: Subject | None = None
    encoder: str | None = None  # name of the file or folder that gave the features of codes, where they weren't learned
    clear: Callable[[], None] = lambda: None  # removes what only training needed


def prepare(config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, OnFigures]) -> Material:
    """Read the images and find their classes; of a checkpoint, encode images and prompts.

    What is found is kept in the run directory `out`, and taken from there when it is. Raises DdmError for bad input,
    before anything costly where that can be told.
    """
    if config.model.family is Family.PIXEL:
        return _pixels(config, out, device, progress)
    from ddm_rt.train.checkpoint.prepare import prepare_checkpoint

    return prepare_checkpoint(config, out, device, progress)


def _pixels(config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, OnFigures]) -> Material:
    images = data.load(config.data)
    try:
        model = DDM(config.model, config.model.latent_shape(config.data))
    except (TypeError, ValueError) as error:  # diffusers' own checks of its arguments
        raise DdmError(f"model.unet: {error}") from error
    pixels = images.latent_input()
    encoder = config.features.encoder
    batches = (pixels[i : i + 256] for i in range(0, len(pixels), 256))
    encoded = None if encoder is None else lambda: encoder_features(batches, encoder, device)
    found = find_classes(config, images, Views(lambda: pixels, encoded), out, device, progress.get("features"))
    latents = model.encode(torch.from_numpy(pixels))
    return Material(TrainingSet(latents, *found), images.labels, encoder=encoder.name if encoder else None)
