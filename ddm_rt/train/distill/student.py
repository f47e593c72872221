"""What a distillation trains, beside the teacher that it learns from."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Protocol

import torch
from torch import Tensor, nn

from ddm_rt.model.unet import DDM
from ddm_rt.train.pixels import PixelSubject
from ddm_rt.train.trainee import Subject


class Student(Subject, Protocol):
    """A subject that starts as its teacher. The conditioner is the teacher's and stays: codes mean what they meant."""

    def teacher(self) -> AbstractContextManager[nn.Module]:
        """The teacher, called as `model` is and with the same `cond`."""

    def whole(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        """What weights.safetensors holds, of `Trainer.weights`."""


class PixelStudent(PixelSubject):
    """All of the UNet of a `DDM`, from the teacher's weights on."""

    def __init__(self, teacher: DDM, gradient_checkpointing: bool = False) -> None:
        """`teacher` is in eval mode and takes no gradients, and stays so."""
        self._teacher, self.model = teacher, deepcopy(teacher)
        self.model.unet.requires_grad_(True)
        if gradient_checkpointing:
            self.model.unet.enable_gradient_checkpointing()

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        return {f"unet.{name}": parameter for name, parameter in self.model.unet.named_parameters()}

    def place(self, device: torch.device) -> None:
        self.model.to(device)
        self._teacher.to(device)

    def teacher(self) -> AbstractContextManager[nn.Module]:
        return nullcontext(self._teacher)

    def whole(self, trained: dict[str, Tensor]) -> dict[str, Tensor]:
        return trained
