"""Stable Diffusion with the indicator in it: text encoders, conditioner, UNet and VAE of one checkpoint family."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from ddm_rt.config import Family, ModelConfig
from ddm_rt.model.unet import POOLED, SIZES, IndicatorUNet
from ddm_rt.runtime import SharedOf


class LatentDDM(IndicatorUNet):
    """The networks of one checkpoint. Without codes (`shared_of` empty) they are diffusers' and transformers' own."""

    def __init__(self, config: ModelConfig, shared_of: SharedOf = ()) -> None:
        super().__init__()
        self.family, self.patch = config.family, config.patch
        self.added_names = (POOLED, SIZES) if self.family is Family.SDXL else ()
        self.unet = UNet2DConditionModel(**config.unet)
        self.vae = AutoencoderKL(**config.vae)
        self.text_encoders = nn.ModuleList(_text_encoder(arguments) for arguments in config.text_encoders)
        if shared_of:
            self.add_indicator(config, shared_of)

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
