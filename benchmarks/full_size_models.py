"""Stable Diffusion 1.5's three networks with random weights, as this project's three graphs.

The architectures are the published ones (runwayml/stable-diffusion-v1-5: unet, vae and text_encoder config.json); the
UNet's cross-attention layers hold the indicator besides. Weights are drawn, never downloaded.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from ddm_rt.model.indicator import install

TOKENS = 77  # T of the text encoder
INDICATOR_TOKENS = 4  # M
LATENT = 64  # height and width of a latent, 512 pixels
VAE_SCALING = 0.18215

Shape = tuple[int | str, ...]  # a str is a free axis


@dataclass(frozen=True)
class Part:
    """One graph: how to make its module, and its inputs and outputs (shape, dtype), batch first."""

    make: Callable[[float, torch.dtype], nn.Module]
    inputs: dict[str, tuple[Callable[[float], Shape], torch.dtype]]
    outputs: dict[str, Shape]


class Denoiser(nn.Module):
    """The UNet as `output = denoiser(x_t, t, cond)`: float32 at its borders, `dtype` inside."""

    def __init__(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> None:
        super().__init__()
        self.unet, self.dtype = unet, dtype

    def forward(self, x_t: Tensor, t: Tensor, text: Tensor, indicator: Tensor, scale: Tensor) -> Tensor:
        kwargs = {"indicator_tokens": indicator.to(self.dtype), "indicator_scale": scale.to(self.dtype)}
        x_t, text = x_t.to(self.dtype), text.to(self.dtype)
        out: Tensor = self.unet(x_t, t, text, cross_attention_kwargs=kwargs, return_dict=False)[0]
        return out.float()


class Decoder(nn.Module):
    """The VAE's decoder as `image = decoder(x0)`, with Stable Diffusion's scaling."""

    def __init__(self, vae: AutoencoderKL, dtype: torch.dtype) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder, self.dtype = vae.post_quant_conv, vae.decoder, dtype

    def forward(self, x0: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv((x0 / VAE_SCALING).to(self.dtype)))
        return image.float()


class TextEncoder(nn.Module):
    """CLIP's text model: token ids [B,77] -> context [B,77,D]."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__()
        self.clip = clip

    def forward(self, input_ids: Tensor) -> Tensor:
        context: Tensor = self.clip(input_ids=input_ids)[0]
        return context.float()


def widths(full: tuple[int, ...], scale: float, multiple: int) -> tuple[int, ...]:
    """Channel counts of a network with about `scale` times the parameters, in multiples of `multiple`."""
    return tuple(max(multiple, multiple * round(width * scale**0.5 / multiple)) for width in full)


def context_dim(scale: float) -> int:
    return widths((768,), scale, 64)[0]


def make_unet(scale: float, dtype: torch.dtype, *, indicator: bool = True) -> UNet2DConditionModel:
    """SD 1.5's UNet with random weights; with `indicator`, decoupled attention in its 16 cross-attention layers."""
    with drawn_as(dtype):
        unet = UNet2DConditionModel(
            sample_size=LATENT,
            in_channels=4,
            out_channels=4,
            block_out_channels=widths((320, 640, 1280, 1280), scale, 32),
            layers_per_block=2,
            cross_attention_dim=context_dim(scale),
            attention_head_dim=8,  # the number of heads, in spite of the name (diffusers issue 2011)
        )
        if indicator:
            install(unet)
    return unet.eval().requires_grad_(False)


def _denoiser(scale: float, dtype: torch.dtype) -> nn.Module:
    return Denoiser(make_unet(scale, dtype), dtype)


def _decoder(scale: float, dtype: torch.dtype) -> nn.Module:
    kinds: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    with drawn_as(dtype):
        vae = AutoencoderKL(
            block_out_channels=widths((128, 256, 512, 512), scale, 32), layers_per_block=2, latent_channels=4, **kinds
        )
    return Decoder(vae, dtype).eval().requires_grad_(False)


def _text_encoder(scale: float, dtype: torch.dtype) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel  # the UNet alone needs no transformers

    dim = context_dim(scale)
    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=12,
        num_attention_heads=dim // 64,
        max_position_embeddings=TOKENS,
        projection_dim=dim,
        hidden_act="quick_gelu",
    )
    with drawn_as(dtype):
        clip = CLIPTextModel(config)
    return TextEncoder(clip).eval().requires_grad_(False)


@contextmanager
def drawn_as(dtype: torch.dtype) -> Any:
    """Weights are drawn in their own type: no float32 copy of them ever exists."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)


_IMAGE: Shape = ("batch", 4, "height", "width")

PARTS: dict[str, Part] = {
    "unet": Part(
        _denoiser,
        {
            "x_t": (lambda scale: _IMAGE, torch.float32),
            "t": (lambda scale: ("batch",), torch.float32),
            "text_tokens": (lambda scale: ("batch", TOKENS, context_dim(scale)), torch.float32),
            "indicator_tokens": (lambda scale: ("batch", INDICATOR_TOKENS, context_dim(scale)), torch.float32),
            "code_scale": (lambda scale: ("batch",), torch.float32),
        },
        {"output": _IMAGE},
    ),
    "vae_decoder": Part(
        _decoder,
        {"x0": (lambda scale: _IMAGE, torch.float32)},
        {"image": ("batch", 3, "image_height", "image_width")},
    ),
    "text_encoder": Part(
        _text_encoder,
        {"input_ids": (lambda scale: ("batch", TOKENS), torch.int64)},
        {"context": ("batch", TOKENS, "dim")},
    ),
}
