"""Stable Diffusion with the indicator in it: text encoders, conditioner, UNet and VAE of one checkpoint family."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from ddm_rt.config import Family, ModelConfig
from ddm_rt.model.attention import install
from ddm_rt.model.indicator import Conditioner
from ddm_rt.model.unet import ADDED_COND, INDICATOR, POOLED, SCALE, SIZES, TEXT


class LatentDDM(nn.Module):
    """The networks of one checkpoint. Without codes (`top_of` empty) they are diffusers' and transformers' own."""

    def __init__(self, config: ModelConfig, top_of: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.family, self.patch = config.family, config.patch
        self.unet = UNet2DConditionModel(**config.unet)
        self.vae = AutoencoderKL(**config.vae)
        self.text_encoders = nn.ModuleList(_text_encoder(arguments) for arguments in config.text_encoders)
        self.conditioner: Conditioner | None = None
        if top_of:
            self.add_indicator(config, top_of)

    def add_indicator(self, config: ModelConfig, top_of: tuple[int, ...]) -> None:
        """Put the indicator, with random weights, into networks that have none yet."""
        install(self.unet)
        self.conditioner = Conditioner(top_of, config.code_embed_dim, config.num_indicator_tokens, self.context_dim)

    @property
    def context_dim(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def added_names(self) -> tuple[str, ...]:
        """Conditions that the UNet takes besides text and code."""
        return (POOLED, SIZES) if self.family is Family.SDXL else ()

    @property
    def cond_names(self) -> tuple[str, ...]:
        own = (TEXT, INDICATOR, SCALE) if self.conditioner is not None else (TEXT,)
        return (*own, *(ADDED_COND[name] for name in self.added_names))

    def encode_text(self, *input_ids: Tensor) -> dict[str, Tensor]:
        """Token ids int64 [B,T], one tensor per encoder -> `context` [B,T,D]; SDXL: and `text_embeds` [B,P].

        SD reads the last hidden states (after the final norm), SDXL the last but one of both encoders, side by side.
        """
        if self.family is not Family.SDXL:
            return {"context": self.text_encoders[0](input_ids=input_ids[0])[0]}
        found = [
            encoder(input_ids=ids, output_hidden_states=True)
            for encoder, ids in zip(self.text_encoders, input_ids, strict=True)
        ]
        context = torch.cat([out.hidden_states[-2] for out in found], dim=-1)
        return {"context": context, POOLED: found[-1].text_embeds}

    def condition(
        self, context: Tensor, code: Tensor, indicator_scale: Tensor, added: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """context [B,T,D], code int64 [B] (-1: null), indicator_scale [B], `added_names` -> cond, by `cond_names`."""
        added = added or {}
        if self.conditioner is None:
            return {TEXT: context} | {ADDED_COND[name]: added[name] for name in self.added_names}
        own = self.conditioner(context, code, indicator_scale)
        return dict(zip(self.cond_names, (*own, *(added[name] for name in self.added_names)), strict=True))

    def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Prediction [B,C,H,W] for latents x_t at timesteps t float32 [B]."""
        indicator: dict[str, Tensor] | None = None
        if self.conditioner is not None:
            indicator = {"indicator_tokens": cond[INDICATOR], "indicator_scale": cond[SCALE]}
        added: dict[str, Tensor] | None = {name: cond[ADDED_COND[name]] for name in self.added_names} or None
        out: Tensor = self.unet(
            x_t, t, cond[TEXT], cross_attention_kwargs=indicator, added_cond_kwargs=added, return_dict=False
        )[0]
        return out

    def encode(self, images: Tensor) -> Tensor:
        """Images [B,3,H·p,W·p] in [-1,1] -> latents [B,C,H,W]: the mean of the VAE's posterior, scaled."""
        latents: Tensor = self.vae.encode(images).latent_dist.mode()
        return (latents - self._shift) * float(self.vae.config.scaling_factor)

    def decode(self, x0: Tensor) -> Tensor:
        """Latents [B,C,H,W] -> images [B,3,H·p,W·p], nominally in [-1,1]."""
        image: Tensor = self.vae.decode(x0 / self.vae.config.scaling_factor + self._shift, return_dict=False)[0]
        return image

    @property
    def _shift(self) -> float:
        return float(self.vae.config.shift_factor or 0.0)


def _text_encoder(arguments: Mapping[str, Any]) -> nn.Module:
    kind = getattr(transformers, arguments["architectures"][0])
    module: nn.Module = kind(transformers.CLIPTextConfig(**arguments))
    return module
