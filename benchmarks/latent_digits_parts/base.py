"""The base checkpoint in diffusers' format: a small trained VAE; UNet and CLIP text encoder with random weights.

The VAE sees images of the training split alone, of digits that aren't in the pair: what it can't draw well costs every
method the same, and no imbalance can come from it.
"""

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from ddm_rt import data
from ddm_rt.config import DataConfig
from ddm_rt.files import atomic_directory

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from checkpoints import tokenizer

SIDE = 32  # pixels
VAE_STEPS, VAE_BATCH, VAE_RATE = 800, 16, 2e-3
KL_WEIGHT = 5e-3  # of the mean over latent elements, against the mean over pixels
SEED = 0

VAE: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (16, 32, 32),  # two halvings: 32x32 pixels are 8x8 latents
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 8,
    "sample_size": SIDE,
    "mid_block_add_attention": False,
    "scaling_factor": 1.0,  # `standardise` leaves nothing to scale
}
UNET: dict[str, Any] = {  # the pixel models' of `balance.py`, but for the channels in and out
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (48, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 64,
    "attention_head_dim": 2,
    "norm_num_groups": 8,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "projection_dim": 64,
    "hidden_act": "quick_gelu",
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
NOISE: dict[str, Any] = {  # levels of `balance.py`; the rest as Stable Diffusion's checkpoints have it
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "steps_offset": 1,
    "set_alpha_to_one": False,
}


def write_base(
    folder: Path, others: tuple[str, ...], prediction_type: str, progress: Callable[[int, float], None] | None = None
) -> Path:
    """The checkpoint at `folder`, if it isn't there; its VAE is trained on the digits `others`."""
    if folder.is_dir():
        return folder
    images = torch.from_numpy(data.load(_source(others)).latent_input())
    vae = train_vae(images, VAE_STEPS, progress)
    with torch.random.fork_rng(devices=[]), atomic_directory(folder) as draft:
        torch.manual_seed(SEED)
        StableDiffusionPipeline(
            vae=vae,
            text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT)),
            tokenizer=tokenizer(folder.with_name("vocabulary")),
            unet=UNet2DConditionModel(**UNET),
            scheduler=DDIMScheduler(**NOISE, prediction_type=prediction_type, clip_sample=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(draft)
    return folder


def _source(digits: tuple[str, ...]) -> DataConfig:
    return DataConfig(source=f"digits:{','.join(digits)}", image_size=SIDE, channels=3)


def train_vae(images: Tensor, steps: int, progress: Callable[[int, float], None] | None = None) -> AutoencoderKL:
    """A VAE of images [N,3,32,32] in [-1,1]: squared error and a small KL term; its latents are standardised."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        vae = AutoencoderKL(**VAE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), VAE_RATE, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(SEED)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = VAE_RATE * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))
        x = images[torch.randint(len(images), (VAE_BATCH,), generator=generator)]
        posterior = vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        error = (vae.decode(z).sample - x).square().mean()
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        optimizer.zero_grad()
        (error + KL_WEIGHT * divergence).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step + 1, error.item())
    vae = vae.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)
    standardise(vae, images)
    return vae


def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Give each latent channel mean 0 and deviation 1 over `images`, by the 1x1 convolutions around the latent.

    The scaling factor of a checkpoint is one number, and diffusers' pipelines of this family know no shift.
    """
    means = torch.cat([vae.encode(x).latent_dist.mode() for x in images.split(256)])
    mean, std = means.mean((0, 2, 3)), means.std((0, 2, 3))
    inner, outer = vae.quant_conv, vae.post_quant_conv
    count = len(mean)
    outer.bias += outer.weight[:, :, 0, 0] @ mean
    outer.weight *= std.view(1, -1, 1, 1)
    inner.weight[:count] /= std.view(-1, 1, 1, 1)
    inner.bias[:count] = (inner.bias[:count] - mean) / std
    inner.bias[count:] -= 2 * std.log()


@torch.no_grad()
def reconstruct(checkpoint: Path, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N,32,32,3] -> the same images encoded (the posterior's mean) and decoded by the checkpoint's VAE."""
    vae = AutoencoderKL.from_pretrained(checkpoint / "vae")
    parts = torch.from_numpy(data.to_model(images)).split(100)
    decoded = torch.cat([vae.decode(vae.encode(x).latent_dist.mode()).sample for x in parts])
    levels = (decoded.clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(0, 2, 3, 1).contiguous().numpy()
