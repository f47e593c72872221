"""Checkpoints in diffusers' format with the real architectures' shape and random weights, small enough for tests."""

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

FAMILIES = ("sd15", "sd21", "sdxl")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = 49152 - 256 - 2


def write_vocabulary(folder: Path, merges: int = _MERGES) -> tuple[Path, Path]:
    """CLIP's own vocab.json and merges.txt, or the first `merges` of them, from the copy that open_clip_torch has."""
    spec = find_spec("open_clip")
    assert spec is not None
    assert spec.origin is not None
    text = gzip.decompress(Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    pairs = text.split("\n")[1 : merges + 1]
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(c) for c in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    words = letters + [f"{letter}</w>" for letter in letters] + ["".join(pair.split()) for pair in pairs]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate([*words, BEGIN, END])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n")
    return folder / "vocab.json", folder / "merges.txt"


def tokenizer(folder: Path, pad: str = END, merges: int = _MERGES) -> CLIPTokenizer:
    vocabulary, pairs = write_vocabulary(folder, merges)
    return CLIPTokenizer(
        vocab=str(vocabulary),
        merges=str(pairs),
        bos_token=BEGIN,
        eos_token=END,
        unk_token=END,
        pad_token=pad,
        model_max_length=77,
    )


def write_checkpoint(family: str, folder: Path, *, safe: bool = True, seed: int = 0) -> Path:
    """A tiny checkpoint of `family` (of `FAMILIES`) at `folder`, as `save_pretrained` writes it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = _PIPELINES[family](folder.with_name(f"{folder.name}.vocabulary"))
        for module in (m for m in pipeline.components.values() if isinstance(m, torch.nn.Module)):
            for parameter in module.parameters():  # norm scales of 1 and biases of 0 would hide what got lost
                parameter.data += 0.02 * torch.randn(parameter.shape)
    pipeline.save_pretrained(folder, safe_serialization=safe)
    return folder


def _unet(**more: Any) -> UNet2DConditionModel:
    arguments: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (32, 64),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 32,
        "attention_head_dim": 4,
        "norm_num_groups": 8,
    }
    return UNet2DConditionModel(**arguments | more)


def _vae(scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=0,  # in the encoder; the decoder has one more
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling,
    )


def _clip(dim: int, layers: int, activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=49408,
        hidden_size=dim,
        intermediate_size=2 * dim,
        num_hidden_layers=layers,
        num_attention_heads=4,
        projection_dim=dim,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _sd15(vocabulary: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=CLIPTextModel(_clip(32, 2, "quick_gelu")),
        tokenizer=tokenizer(vocabulary),
        unet=_unet(),
        scheduler=DDIMScheduler(**_NOISE, set_alpha_to_one=False, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sd21(vocabulary: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=CLIPTextModel(_clip(32, 2, "gelu")),
        tokenizer=tokenizer(vocabulary, pad="!"),
        unet=_unet(attention_head_dim=(4, 8), use_linear_projection=True),
        scheduler=DDIMScheduler(**_NOISE, set_alpha_to_one=False, clip_sample=False, prediction_type="v_prediction"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(vocabulary: Path) -> StableDiffusionXLPipeline:
    unet = _unet(
        cross_attention_dim=64,
        attention_head_dim=(4, 8),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 32,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=CLIPTextModel(_clip(32, 2, "quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_clip(32, 2, "gelu")),
        tokenizer=tokenizer(vocabulary),
        tokenizer_2=tokenizer(vocabulary, pad="!"),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
    )


_PIPELINES = {
    "sd15": _sd15,
    "sd21": _sd21,
    "sdxl": _sdxl,
}
