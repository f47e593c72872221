"""Bundles that are small enough to be committed: random weights, few of them, and each of few bits.

They were exported once, at the commit that the goldens were first made from, and are never exported again: that they
open, keep their ids and give the same images is what their tests are about.
"""

import lzma
import tarfile
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from checkpoints import tokenizer
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from latent_runs import add_indicator, write_run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from ddm_rt.bundle import Codes, Leaf, write_json
from ddm_rt.export.run import export_run
from ddm_rt.model.unet import DDM
from ddm_rt.presets import resolve

_MERGES = 100  # of CLIP's vocabulary: words of two or three letters
_WORDS = 512 + _MERGES + 2
_WIDTH = 16  # of text
_WEIGHTS = "weights.safetensors"
_GRID = 32  # weights are whole multiples of 1/32, so that they compress


def write(out: Path) -> None:
    """The archives of every bundle into `out`."""
    with TemporaryDirectory() as folder:
        runs = {
            "tiny": _tiny(Path(folder) / "tiny"),
            "sd15": _latent(_sd15(Path(folder) / "words"), Path(folder) / "sd15"),
            "sdxl": _latent(_sdxl(Path(folder) / "words"), Path(folder) / "sdxl"),
        }
        for name, run in runs.items():
            bundle = export_run(run, Path(folder) / f"{name}-bundle")
            (out / f"{name}.tar.xz").write_bytes(_archive(bundle.path))


def _archive(folder: Path) -> bytes:
    """A tar.xz with the folder's files alone: no owners, no times."""
    buffer = BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(path.relative_to(folder).as_posix())
            entry.size = path.stat().st_size
            tar.addfile(entry, BytesIO(path.read_bytes()))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def _coarse(tensor: Tensor) -> Tensor:
    return torch.round(tensor * _GRID) / _GRID if tensor.is_floating_point() else tensor


def _tiny(run: Path) -> Path:
    """A pixel run: 16 by 16, grey, noisy DDIM by default. It predicts v: of an untrained network that clips less x0."""
    config = resolve("tiny", {"schedule.prediction_type": "v_prediction", "sampling.eta": 0.5})
    shares = (0.5, 0.3, 0.2, 0.6, 0.4)
    leaves = tuple(Leaf(code=i, top_code=int(i > 2), size=10 + i, share_in_top=share) for i, share in enumerate(shares))
    codes = Codes(origin="discovered", leaves=leaves)
    torch.manual_seed(0)
    model = DDM(config.model, config.model.latent_shape(config.data), codes.shared_of)
    run.mkdir()
    write_json(run / "config.json", config.model_dump(mode="json"))
    write_json(run / "codes.json", codes.model_dump(mode="json"))
    save_file({name: _coarse(_moved(name, tensor)) for name, tensor in model.state_dict().items()}, run / _WEIGHTS)
    return run


def _moved(name: str, tensor: Tensor) -> Tensor:
    """Norm scales of 1 and biases of 0 would hide what got lost."""
    moved = tensor.is_floating_point() and tensor.ndim == 1
    return tensor + 0.05 * torch.randn(tensor.shape) if moved else tensor


def _latent(pipeline: Any, run: Path) -> Path:
    """A run of the pipeline's checkpoint with 4 codes in 2 top codes and no low-rank factors."""
    for module in (m for m in pipeline.components.values() if isinstance(m, nn.Module)):
        for name, parameter in module.named_parameters():
            parameter.data = _coarse(_moved(name, parameter.data))
    checkpoint = run.with_name(f"{run.name}-checkpoint")
    pipeline.save_pretrained(checkpoint)
    add_indicator(write_run(checkpoint, run))
    weights = load_file(run / _WEIGHTS)
    kept = {name: _coarse(tensor) for name, tensor in weights.items() if not name.startswith("lora.")}
    save_file(kept, run / _WEIGHTS)
    return run


def _unet(**more: Any) -> UNet2DConditionModel:
    arguments: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": _WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**arguments | more)


def _vae(scaling: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=scaling,
    )


def _clip(activation: str) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=_WORDS,
        hidden_size=_WIDTH,
        intermediate_size=_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=_WIDTH,
        hidden_act=activation,
        bos_token_id=_WORDS - 2,
        eos_token_id=_WORDS - 1,
        pad_token_id=1,
    )


_NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def _sd15(words: Path) -> StableDiffusionPipeline:
    torch.manual_seed(1)
    return StableDiffusionPipeline(
        vae=_vae(0.18215),
        text_encoder=CLIPTextModel(_clip("quick_gelu")),
        tokenizer=tokenizer(words, merges=_MERGES),
        unet=_unet(),
        scheduler=DDIMScheduler(**_NOISE, set_alpha_to_one=False, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(words: Path) -> StableDiffusionXLPipeline:
    torch.manual_seed(2)
    unet = _unet(
        cross_attention_dim=2 * _WIDTH,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + _WIDTH,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(0.13025),
        text_encoder=CLIPTextModel(_clip("quick_gelu")),
        text_encoder_2=CLIPTextModelWithProjection(_clip("gelu")),
        tokenizer=tokenizer(words, merges=_MERGES),
        tokenizer_2=tokenizer(words, pad="!", merges=_MERGES),
        unet=unet,
        scheduler=EulerDiscreteScheduler(**_NOISE, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True,
    )
