"""Codes without training: what makes an image of a code is put in place of what would have made another.

At each place that is steered, the components of a response x along directions are removed and the code's are added:
x + s·(v - P x), where P = BᵀB projects on the span of the directions (orthonormal rows B), and v lies in it. It is the
operator of EquiSteer (ECCV 2026), which takes directions from words and draws the attribute by chance. Here a code is
what steers, so a quota can hand it out. The null code has s = 0, which is the plain model.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ddm_rt.config import SteeredLayer
from ddm_rt.model import keys_values

PREDICTION = "prediction"  # the place behind the last layer: x0


def change(x: Tensor, v: Tensor, basis: Tensor, scale: Tensor) -> Tensor:
    """s·(v - P x) at every position: x [B,N,C], v [B,C], basis [B,R,C] of orthonormal rows, s [B] -> [B,N,C]."""
    along = (x @ basis.transpose(1, 2)) @ basis  # P x
    return scale[:, None, None] * (v[:, None] - along)


def attention_layers(unet: UNet2DConditionModel) -> dict[str, int]:
    """The cross-attention layers by name, and how wide what they give is."""
    return {name: attn.out_dim for name, attn in keys_values.layers(unet).items()}


def packed_width(layers: Sequence[SteeredLayer]) -> int:
    """How many numbers a code steers with: of each place v, and then of each place the rows of B."""
    return sum(layer.width * (1 + layer.rank) for layer in layers)


class SteeringConditioner(nn.Module):
    """Makes `cond` from a context and a code, as `model.indicator.Conditioner` does.

    One array holds what every place is steered with. So the denoiser has no weights of its own for it.
    """

    num_tokens = 0

    def __init__(self, num_codes: int, layers: Sequence[SteeredLayer]) -> None:
        super().__init__()
        self.vector = nn.Embedding(num_codes, sum(layer.width for layer in layers))
        # One row, of every code: looked up, too, so that a graph keeps it as it is.
        self.basis = nn.Embedding(1, sum(layer.width * layer.rank for layer in layers))

    def forward(self, context: Tensor, code: Tensor, indicator_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """context [B,T,D], code int64 [B] (-1: null), scale [B] -> text, the array [B,W] (`packed_width`), s [B]."""
        packed = torch.cat([self.vector(code.clamp(min=0)), self.basis(torch.zeros_like(code))], dim=1)
        return context, packed, indicator_scale * (code >= 0).to(indicator_scale.dtype)


class Steering:
    """The places of a UNet that are steered. Outside of `by` they are as they were."""

    def __init__(self, unet: UNet2DConditionModel, layers: Sequence[SteeredLayer], steered_from: float) -> None:
        """Timesteps below `steered_from` are left alone. Raises KeyError for a layer that isn't there."""
        self.layers, self._from = tuple(layers), steered_from
        self._given: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # v, B and s of each place
        modules = dict(unet.named_modules())
        for layer in layers:
            if layer.name != PREDICTION:
                modules[layer.name].register_forward_hook(partial(_steer, self, layer.name))

    @property
    def steers(self) -> bool:
        """Whether this is within `by`."""
        return bool(self._given)

    @contextmanager
    def by(self, packed: Tensor, scale: Tensor, t: Tensor) -> Iterator[None]:
        """Calls of the UNet within it are steered by the array [B,W] and s [B] of codes, at timesteps t [B]."""
        if self._from:
            scale = scale * (t >= self._from).to(scale.dtype)
        sizes = [layer.width for layer in self.layers] + [layer.width * layer.rank for layer in self.layers]
        parts, count = torch.split(packed, sizes, dim=1), len(self.layers)
        self._given = {
            layer.name: (v, rows.reshape(-1, layer.rank, layer.width), scale)
            for layer, v, rows in zip(self.layers, parts[:count], parts[count:], strict=True)
        }
        try:
            yield
        finally:
            self._given = {}

    def change(self, name: str, x: Tensor) -> Tensor:
        """What is added to a response [B,N,C] of a place that is steered."""
        return change(x, *(tensor.to(x.dtype) for tensor in self._given[name]))

    def prediction(self, x0: Tensor) -> Tensor:
        """The prediction [B,C,H,W] as one response, [B,1,C·h·w]. Directions are squares of one size: an x0 of another
        is seen in theirs, and what they change there is brought to its own.
        """
        if PREDICTION not in self._given:
            return x0
        width = self._given[PREDICTION][0].shape[1]
        side = math.isqrt(width // x0.shape[1])
        seen = F.interpolate(x0, size=(side, side), mode="bilinear")
        added = self.change(PREDICTION, seen.flatten(1)[:, None]).view(seen.shape)
        return x0 + F.interpolate(added, size=x0.shape[2:], mode="bilinear")


def _steer(steering: Steering, name: str, module: nn.Module, given: Any, out: Tensor) -> Tensor:
    return out + steering.change(name, out) if steering.steers else out
