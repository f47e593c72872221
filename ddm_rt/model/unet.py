"""The denoising model, built from configuration: diffusers' UNet2DConditionModel with the indicator in it."""

from collections.abc import Mapping

from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from ddm_rt.config import ModelConfig
from ddm_rt.model.attention import install
from ddm_rt.model.indicator import Conditioner

TEXT = "text_tokens"
INDICATOR = "indicator_tokens"
# s per sample, 0 for the null code. A name of its own: an ONNX graph can't give a changed value out under the
# name of its input.
SCALE = "code_scale"
# What the conditioner of SDXL takes besides text and code.
POOLED = "text_embeds"  # pooled output of the last text encoder, [B, P]
SIZES = "time_ids"  # original height and width, crop top and left, height and width in pixels, [B, 6]
ADDED_COND = {POOLED: "pooled_text", SIZES: "sizes"}  # what `cond` calls them


class DDM(nn.Module):
    """UNet and conditioner. Without codes (`top_of` empty) it is diffusers' UNet and nothing else."""

    def __init__(self, config: ModelConfig, latent_shape: tuple[int, int, int], top_of: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.patch = config.patch
        channels, height, _ = latent_shape
        self.unet = UNet2DConditionModel(sample_size=height, in_channels=channels, out_channels=channels, **config.unet)
        self.conditioner: Conditioner | None = None
        if top_of:
            install(self.unet)
            self.conditioner = Conditioner(top_of, config.code_embed_dim, config.num_indicator_tokens, self.context_dim)

    @property
    def context_dim(self) -> int:
        return int(self.unet.config.cross_attention_dim)

    @property
    def cond_names(self) -> tuple[str, ...]:
        return (TEXT, INDICATOR, SCALE) if self.conditioner is not None else (TEXT,)

    def condition(self, context: Tensor, code: Tensor, indicator_scale: Tensor) -> dict[str, Tensor]:
        """context [B,T,D], code int64 [B] (-1: null), indicator_scale [B] -> cond, named by `cond_names`."""
        if self.conditioner is None:
            return {TEXT: context}
        return dict(zip(self.cond_names, self.conditioner(context, code, indicator_scale), strict=True))

    def forward(self, x_t: Tensor, t: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """Prediction [B,C,H,W] for latents x_t at timesteps t float32 [B]."""
        indicator: dict[str, Tensor] | None = None
        if self.conditioner is not None:
            indicator = {"indicator_tokens": cond[INDICATOR], "indicator_scale": cond[SCALE]}
        out: Tensor = self.unet(x_t, t, cond[TEXT], cross_attention_kwargs=indicator, return_dict=False)[0]
        return out

    def encode(self, images: Tensor) -> Tensor:
        """Images [B,c,H·p,W·p] in [-1,1] -> latents [B,c·p²,H,W] (space to depth)."""
        return F.pixel_unshuffle(images, self.patch)

    def decode(self, x0: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return F.pixel_shuffle(x0, self.patch)
