"""Stable Diffusion XL with DDM's indicator: `DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR)`.

images = pipe("a photo of a doctor", num_images_per_prompt=4, code=[0, 1, 0, 1]).images
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer


class DDMPipeline(StableDiffusionXLPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose images also follow a code; guidance is joint, so it costs no extra pass.

    With guidance, the null text and the null code stand against the text and the code:
    ε = ε_∅∅ + g·(ε_tc - ε_∅∅).
    """

    _exclude_from_cpu_offload = ("indicator",)  # its layers are called one by one, by the UNet's

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        indicator: ModelMixin,
        image_encoder: Any = None,
        feature_extractor: Any = None,
        force_zeros_for_empty_prompt: bool = True,
        add_watermarker: bool | None = None,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            text_encoder_2,
            tokenizer,
            tokenizer_2,
            unet,
            scheduler,
            image_encoder,
            feature_extractor,
            force_zeros_for_empty_prompt,
            add_watermarker,
        )
        self.register_modules(indicator=indicator)
        indicator.install(unet)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        code: int | Sequence[int] = -1,
        indicator_scale: float = 1.0,
        guidance_scale: float = 5.0,
        num_images_per_prompt: int = 1,
        **kwargs: Any,
    ) -> Any:
        """As diffusers' own, and: `code`, one for all images or one for each (-1: none), `indicator_scale`."""
        given = kwargs.get("prompt_embeds") if prompt is None else prompt
        texts = 1 if given is None or isinstance(given, str) else len(given)
        guided = guidance_scale > 1 and self.unet.config.time_cond_proj_dim is None
        own = self.indicator.condition(code, indicator_scale, texts * num_images_per_prompt, guided=guided)
        kwargs["cross_attention_kwargs"] = {**(kwargs.get("cross_attention_kwargs") or {}), **own}
        return super().__call__(
            prompt, guidance_scale=guidance_scale, num_images_per_prompt=num_images_per_prompt, **kwargs
        )
