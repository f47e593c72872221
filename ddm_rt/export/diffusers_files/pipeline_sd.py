"""Stable Diffusion with DDM's indicator: `DiffusionPipeline.from_pretrained(DIR, custom_pipeline=DIR)`.

images = pipe("a photo of a doctor", num_images_per_prompt=4, code=[0, 1, 0, 1]).images
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, ModelMixin, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPTextModel, CLIPTokenizer


class DDMPipeline(StableDiffusionPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose images also follow a code; guidance is joint, so it costs no extra pass.

    With guidance, the null text and the null code stand against the text and the code:
    ε = ε_∅∅ + g·(ε_tc - ε_∅∅).
    """

    _exclude_from_cpu_offload = ("safety_checker", "indicator")  # its layers are called one by one, by the UNet's

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        indicator: ModelMixin,
        safety_checker: Any = None,
        feature_extractor: Any = None,
        image_encoder: Any = None,
        requires_safety_checker: bool = False,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
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
        guidance_scale: float = 7.5,
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
