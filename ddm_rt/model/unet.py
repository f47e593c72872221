"""The denoising model, built from configuration: diffusers' UNet2DConditionModel with the indicator in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ddm_rt.config import ModelConfig
from ddm_rt.model import keys_values
from ddm_rt.model.indicator import Conditioner, install, take_ready
from ddm_rt.model.steering import Steering, SteeringConditioner, packed_width
from ddm_rt.runtime import SharedOf, TensorSpec

TEXT = "text_tokens"
INDICATOR = "indicator_tokens"
# s per sample, 0 for the null code. A name of its own: an ONNX graph can't give a changed value out under the
# name of its input.
SCALE = "code_scale"
STEERING = "steering"  # of a code that steers, in place of the indicator's tokens; see `model.steering`
KEYS_VALUES = "keys_values"  # of both, in place of the tokens
# What the conditioner of SDXL takes besides text and code.
POOLED = "text_embeds"  # pooled output of the last text encoder, [B, P]
SIZES = "time_ids"  # original height and width, crop top and left, height and width in pixels, [B, 6]
ADDED_COND = {POOLED: "pooled_text", SIZES: "sizes"}  # what `cond` calls them


class IndicatorUNet(nn.Module):
    """A UNet and its conditioner. Without codes it is diffusers' UNet and nothing else."""

    unet: UNet2DConditionModel
    added_names: tuple[str, ...] = ()  # conditions that the UNet takes besides text and code

    def __init__(self) -> None:
        super().__init__()
        self.conditioner: Conditioner | SteeringConditioner | None = None
        self.steering: Steering | None = None

    def add_indicator(self, config: ModelConfig, shared_of: SharedOf) -> None:
        """Put the indicator, with random weights, into networks that have none yet; or steering, where `config` says
        so.
        """
        if config.steering:
            self.conditioner = SteeringConditioner(len(shared_of), config.steering)
            self.steering = Steering(self.unet, config.steering, config.steered_from)
            return
        install(self.unet)
        self.conditioner = Conditioner(shared_of, config.code_embed_dim, config.num_indicator_tokens, self.context_dim)

    @property
    def context_dim(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def cond_names(self) -> tuple[str, ...]:
        own: tuple[str, ...] = (TEXT,)
        if self.conditioner is not None:
            own = (TEXT, INDICATOR if self.steering is None else STEERING, SCALE)
        return (*own, *(ADDED_COND[name] for name in self.added_names))

    def condition(
        self, context: Tensor, code: Tensor, indicator_scale: Tensor, added: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """context [B,T,D], code int64 [B] (-1: null), indicator_scale [B], `added_names` -> cond, by `cond_names`."""
        own = (context,) if self.conditioner is None else self.conditioner(context, code, indicator_scale)
        return dict(zip(self.cond_names, (*own, *((added or {})[name] for name in self.added_names)), strict=True))

    @property
    def num_indicator_tokens(self) -> int:
        return 0 if self.conditioner is None else self.conditioner.num_tokens

    def cond_specs(self, added: Sequence[TensorSpec], *, ready: bool) -> tuple[TensorSpec, ...]:
        """What `condition`, and `ready` if it is asked for, gives, where it takes `added`."""
        width = 2 * sum(attn.inner_kv_dim for attn in keys_values.layers(self.unet).values())
        steering = packed_width(self.steering.layers) if self.steering is not None else 0
        shapes: dict[str, tuple[int | str, ...]] = {
            TEXT: ("tokens", self.context_dim),
            INDICATOR: (self.num_indicator_tokens, self.context_dim),
            KEYS_VALUES: ("keys", width),
            STEERING: (steering,),
            SCALE: (),
            **{ADDED_COND[spec.name]: spec.shape for spec in added},
        }
        names = ready_names(self.cond_names) if ready else self.cond_names
        return tuple(TensorSpec(name=name, shape=shapes[name]) for name in names)

    def ready(self, cond: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`cond` with the keys and values [B,T+M,W] of its tokens in their place; see `model.keys_values`."""
        made = {KEYS_VALUES: keys_values.pack(self.unet, cond[TEXT], cond.get(INDICATOR))}
        return {name: (made | dict(cond))[name] for name in ready_names(self.cond_names)}

    def take_ready(self) -> None:
        """From now on `forward` is given what `ready` makes, and no tokens where the model has no indicator."""
        if not self.num_indicator_tokens:
            take_ready(self.unet)

    def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Prediction [B,C,H,W] for latents x_t at timesteps t float32 [B]. `cond` has tokens, or is `ready`."""
        if self.steering is None:
            return self._prediction(x_t, t, cond)
        with self.steering.by(cond[STEERING], cond[SCALE], t):
            return self.steering.prediction(self._prediction(x_t, t, cond))

    def _prediction(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        own: dict[str, Any] = {}
        if self.num_indicator_tokens:
            own["indicator_scale"] = cond[SCALE]
        if KEYS_VALUES in cond:
            own["ready"] = keys_values.unpack(self.unet, cond[KEYS_VALUES], self.num_indicator_tokens)
        elif self.num_indicator_tokens:
            own["indicator_tokens"] = cond[INDICATOR]
        added: dict[str, Tensor] | None = {name: cond[ADDED_COND[name]] for name in self.added_names} or None
        out: Tensor = self.unet(
            x_t, t, cond.get(TEXT), cross_attention_kwargs=own or None, added_cond_kwargs=added, return_dict=False
        )[0]
        return out


def ready_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of `cond` where keys and values take the place of tokens."""
    return (KEYS_VALUES, *(name for name in names if name not in (TEXT, INDICATOR)))


class DDM(IndicatorUNet):
    """A model of pixels: latents are the image, folded. It takes no text."""

    def __init__(self, config: ModelConfig, latent_shape: tuple[int, int, int], shared_of: SharedOf = ()) -> None:
        super().__init__()
        self.patch = config.patch
        channels, height, _ = latent_shape
        self.unet = UNet2DConditionModel(sample_size=height, in_channels=channels, out_channels=channels, **config.unet)
        if shared_of:
            self.add_indicator(config, shared_of)

    def encode(self, images: Tensor) -> Tensor:
        """Images [B,c,H·p,W·p] in [-1,1] -> latents [B,c·p²,H,W] (space to depth)."""
        return F.pixel_unshuffle(images, self.patch)

    def decode(self, x0: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return F.pixel_shuffle(x0, self.patch)


def keep_channels_last(unet: UNet2DConditionModel) -> None:
    """Have every convolution of `unet` get channels-last tensors, as kernels of half precision on a CUDA device want
    them: its weights, its input, and what diffusers hands on the other way: after attention, and in training to the
    shortcuts.
    """
    nn.Module.to(unet, memory_format=torch.channels_last)  # type: ignore[call-overload]
    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d) and name.split(".")[-1] in ("conv_in", "proj_out", "conv_shortcut"):
            module.register_forward_pre_hook(_first_input)
        elif isinstance(module, Transformer2DModel) and not isinstance(module.proj_out, nn.Conv2d):
            module.register_forward_hook(_first_output)


def _first_input(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (given[0].contiguous(memory_format=torch.channels_last), *given[1:])


def _first_output(module: nn.Module, given: tuple[Any, ...], made: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (made[0].contiguous(memory_format=torch.channels_last), *made[1:])
