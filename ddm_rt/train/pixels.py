"""Runs on pixels: the images are their own latents, folded, and the subject is a `DDM` from random weights."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from ddm_rt import data
from ddm_rt.config import RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.model.unet import DDM, keep_channels_last
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import SharedOf
from ddm_rt.train.codes.classes import Views, find_classes
from ddm_rt.train.codes.encoders import encoder_features
from ddm_rt.train.distributed import in_channels_last
from ddm_rt.train.trainee import Material


class PixelSubject:
    """The whole of a `DDM`, from random weights. Its context is zeros."""

    takes_text = False
    prompts: tuple[str, ...] = ("",)

    def __init__(self, config: RunConfig, shared_of: SharedOf) -> None:
        self.model = DDM(config.model, config.model.latent_shape(config.data), shared_of)
        self._precision = config.train.precision
        if config.train.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        return dict(self.model.named_parameters())

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        trained = self.trained
        return {name: value for name, value in self.model.state_dict().items() if name not in trained}

    def place(self, device: torch.device) -> None:
        self.model.to(device)
        if in_channels_last(device, self._precision):
            keep_channels_last(self.model.unet)

    def condition(self, index: Tensor, code: Tensor, no_text: Tensor) -> dict[str, Tensor]:
        context = torch.zeros(len(index), 1, self.model.context_dim, device=code.device)
        return self.model.condition(context, code, torch.ones(len(index), device=code.device))

    def condition_on(self, rows: Tensor, code: Tensor) -> dict[str, Tensor]:
        return self.condition(rows, code, torch.ones(len(rows), dtype=torch.bool))

    def decode(self, x0: Tensor) -> Tensor:
        return self.model.decode(x0)


class PixelStudent(PixelSubject):
    """All of the UNet of a `DDM`, from the teacher's weights on."""

    def __init__(self, config: RunConfig, teacher: DDM) -> None:
        """`teacher` is in eval mode and takes no gradients, and stays so."""
        self._teacher, self.model = teacher, deepcopy(teacher)
        self._precision = config.train.precision
        self.model.unet.requires_grad_(True)
        if config.train.gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        return {f"unet.{name}": parameter for name, parameter in self.model.unet.named_parameters()}

    def place(self, device: torch.device) -> None:
        super().place(device)
        self._teacher.to(device)
        if in_channels_last(device, self._precision):
            keep_channels_last(self._teacher.unet)

    def teacher(self) -> AbstractContextManager[nn.Module]:
        return nullcontext(self._teacher)

    def whole(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        return trained


def prepare_pixels(config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, OnFigures]) -> Material:
    """As `run.prepare`, for the family of pixels."""
    images = data.load(config.data)
    try:
        with torch.device("meta"):  # a trial, before codes are found, which takes minutes
            model = DDM(config.model, config.model.latent_shape(config.data))
    except (TypeError, ValueError) as error:  # diffusers' own checks of its arguments
        raise DdmError(f"model.unet: {error}") from error
    pixels = images.latent_input()
    encoder = config.features.encoder
    batches = (pixels[i : i + 256] for i in range(0, len(pixels), 256))
    encoded = None if encoder is None else lambda: encoder_features(batches, encoder, device)
    views = Views(lambda: pixels, encoded, device, progress.get("features"))
    classes = find_classes(config, images, views, out)
    return Material(
        model.encode(torch.from_numpy(pixels)),
        classes,
        partial(PixelSubject, config, classes.shared_of),
        images.labels,
        encoder.name if encoder else None,
    )
