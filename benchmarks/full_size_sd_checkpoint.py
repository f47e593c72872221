"""Checkpoints of Stable Diffusion's published architectures with random weights, in diffusers' format.

    python benchmarks/full_size_sd_checkpoint.py sd15|sdxl DIR [--scale 1.0] [--dtype fp32]
    python benchmarks/full_size_sd_checkpoint.py indicator RUN

The second adds to an imported run what training adds: indicator weights for 4 codes and low-rank factors. Weights are
as torch draws them for a new module, which keeps activations small enough for fp16; none are downloaded.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from full_size_models import drawn_as, widths
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from checkpoints import tokenizer
from latent_runs import add_indicator

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
}
HEAD = 64  # channels of an attention head, in text encoders and SDXL's UNet
HEADS = 8  # of SD 1.5's UNet

# Component -> how it is made at a scale, one after the other: never are two in memory.
Components = dict[str, Callable[[float], Any]]


def _sd15_unet(scale: float) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=64,
        block_out_channels=widths((320, 640, 1280, 1280), scale, 32),
        cross_attention_dim=_vit_l(scale).hidden_size,
        attention_head_dim=HEADS,  # the number of heads, in spite of the name (diffusers issue 2011)
    )


def _sdxl_unet(scale: float) -> UNet2DConditionModel:
    channels = widths((320, 640, 1280), scale, HEAD)
    pooled, times = _bigg(scale).projection_dim, widths((256,), scale, 32)[0]
    return UNet2DConditionModel(
        sample_size=128,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=tuple(width // HEAD for width in channels),
        cross_attention_dim=_vit_l(scale).hidden_size + _bigg(scale).hidden_size,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=times,
        projection_class_embeddings_input_dim=6 * times + pooled,
    )


def _vae(scale: float, size: int, scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=widths((128, 256, 512, 512), scale, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=size,
        scaling_factor=scaling,
    )


def _clip(dim: int, layers: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=dim,
        intermediate_size=4 * dim,
        num_hidden_layers=layers,
        num_attention_heads=dim // HEAD,
        projection_dim=dim,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


def _vit_l(scale: float) -> CLIPTextConfig:
    return _clip(widths((768,), scale, HEAD)[0], 12, "quick_gelu")


def _bigg(scale: float) -> CLIPTextConfig:
    return _clip(widths((1280,), scale, HEAD)[0], 32, "gelu")


ARCHITECTURES: dict[str, Components] = {
    "sd15": {
        "unet": _sd15_unet,
        "vae": lambda scale: _vae(scale, 512, 0.18215),
        "text_encoder": lambda scale: CLIPTextModel(_vit_l(scale)),
        "scheduler": lambda scale: DDIMScheduler(**NOISE, set_alpha_to_one=False, clip_sample=False),
    },
    "sdxl": {
        "unet": _sdxl_unet,
        "vae": lambda scale: _vae(scale, 1024, 0.13025),
        "text_encoder": lambda scale: CLIPTextModel(_vit_l(scale)),
        "text_encoder_2": lambda scale: CLIPTextModelWithProjection(_bigg(scale)),
        "scheduler": lambda scale: EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
    },
}
PIPELINES = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}
PADS = {"tokenizer": "<|endoftext|>", "tokenizer_2": "!"}


def write(family: str, folder: Path, scale: float, dtype: torch.dtype) -> None:
    """The checkpoint at `folder`."""
    index: dict[str, Any] = {"_class_name": PIPELINES[family]}
    for name, make in ARCHITECTURES[family].items():
        with drawn_as(dtype):
            component = make(scale)
        component.save_pretrained(folder / name)
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
        del component
    for name in ("tokenizer", "tokenizer_2")[: 1 + (family == "sdxl")]:
        tokenizer(folder.with_name(f"{folder.name}.vocabulary"), PADS[name]).save_pretrained(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*ARCHITECTURES, "indicator"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of parameters")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    a = parser.parse_args()
    if a.what == "indicator":
        add_indicator(a.folder)
    else:
        write(a.what, a.folder, a.scale, DTYPES[a.dtype])


if __name__ == "__main__":
    main()
