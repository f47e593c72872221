"""What a training run trains: a model, which of its tensors move, and what a minibatch conditions it with."""

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from ddm_rt.config import RunConfig
from ddm_rt.model.unet import DDM


class Subject(Protocol):
    """One family's side of the loop. `model(x_t, t, cond)` gives the prediction."""

    takes_text: bool
    prompts: tuple[str, ...]  # distinct ones of the images, after the null text

    @property
    def model(self) -> nn.Module: ...

    @property
    def trained(self) -> Mapping[str, nn.Parameter]:
        """What moves, by the names in weights.safetensors."""

    @property
    def fixed(self) -> Mapping[str, Tensor]:
        """What weights.safetensors holds besides."""

    def place(self, device: torch.device) -> None:
        """Move what a step needs to `device`."""

    def condition(self, index: Tensor, code: Tensor, no_text: Tensor) -> dict[str, Tensor]:
        """cond of the images `index` int64 [B] with code int64 [B] (-1: null), some without their text, bool [B].

        `code` is on the device that the result is for, the others on the CPU.
        """

    def condition_on(self, rows: Tensor, code: Tensor) -> dict[str, Tensor]:
        """cond of no image of the set: of the prompts `rows` int64 [B] with code int64 [B]."""

    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B,C,H,W] -> images [B,c,H',W'], nominally in [-1,1]."""


class PixelSubject:
    """The whole of a `DDM`, from random weights. Its context is zeros."""

    takes_text = False
    prompts: tuple[str, ...] = ("",)

    def __init__(self, config: RunConfig, latent_shape: tuple[int, int, int], top_of: tuple[int, ...]) -> None:
        self.model = DDM(config.model, latent_shape, top_of)
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

    def condition(self, index: Tensor, code: Tensor, no_text: Tensor) -> dict[str, Tensor]:
        context = torch.zeros(len(index), 1, self.model.context_dim, device=code.device)
        return self.model.condition(context, code, torch.ones(len(index), device=code.device))

    def condition_on(self, rows: Tensor, code: Tensor) -> dict[str, Tensor]:
        return self.condition(rows, code, torch.ones(len(rows), dtype=torch.bool))

    def decode(self, x0: Tensor) -> Tensor:
        return self.model.decode(x0)
