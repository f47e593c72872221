"""Stable Diffusion 1.5 and XL with random weights: networks, settings and inputs, without a bundle or an export.

The architectures are the published ones (unet and vae config.json). Time doesn't depend on weights. The text encoders
are tiny stand-ins, because no timed call uses them: a prompt is encoded once, and its context is drawn here.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ddm_rt.config import ModelConfig, ScheduleConfig
    from ddm_rt.model.latent import LatentDDM
    from ddm_rt.schedule import StepTable
    from gpu_parts.rig import Rig

CODES = 4  # in two branches
INDICATOR = 4  # tokens
TEXT = 77
GUIDANCE = 7.5

_NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Architecture:
    """A family's networks at one size, and how it is sampled."""

    name: str
    family: str
    sampler: str  # of ddm_rt
    unet: dict[str, Any]
    vae: dict[str, Any]
    side: int  # of a latent
    pooled: int = 0  # numbers of SDXL's pooled text

    @property
    def context(self) -> int:
        return int(self.unet["cross_attention_dim"])

    @property
    def latent(self) -> tuple[int, int, int]:
        return (4, self.side, self.side)

    @property
    def pixels(self) -> int:
        """A side of the image."""
        return self.side * 8


_VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
}
_FULL_VAE = _VAE | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
_TINY_VAE = _VAE | {"block_out_channels": (8, 8, 8, 8), "layers_per_block": 0, "norm_num_groups": 4}
_TINY_UNET: dict[str, Any] = {"sample_size": 8, "layers_per_block": 1, "block_out_channels": (32, 64)}
_TINY_UNET |= {"norm_num_groups": 8, "cross_attention_dim": 32}


def sd15(*, tiny: bool = False) -> Architecture:
    unet: dict[str, Any] = {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,  # the number of heads, in spite of the name (diffusers issue 2011)
    }
    if tiny:
        unet = _TINY_UNET | {
            "attention_head_dim": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
    vae = (_TINY_VAE if tiny else _FULL_VAE) | {"scaling_factor": 0.18215}
    return Architecture("sd15", "sd", "ddim", unet, vae, 4 if tiny else 64)


def sdxl(*, tiny: bool = False) -> Architecture:
    unet: dict[str, Any] = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    pooled = 1280
    if tiny:
        pooled = 32
        unet = _TINY_UNET | {
            "attention_head_dim": (4, 8),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + pooled,
        }
    vae = (_TINY_VAE if tiny else _FULL_VAE) | {"scaling_factor": 0.13025}
    return Architecture("sdxl", "sdxl", "euler", unet, vae, 4 if tiny else 128, pooled)


ARCHITECTURES = {"sd15": sd15, "sdxl": sdxl}


def model_config(architecture: Architecture) -> "ModelConfig":
    from ddm_rt.config import ModelConfig

    clip: dict[str, Any] = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    clip |= {"num_attention_heads": 1, "max_position_embeddings": TEXT, "projection_dim": 8}
    clip |= {"bos_token_id": 6, "eos_token_id": 7, "pad_token_id": 1}
    kinds = ["CLIPTextModel"] if architecture.family == "sd" else ["CLIPTextModel", "CLIPTextModelWithProjection"]
    return ModelConfig.model_validate(
        {
            "family": architecture.family,
            "patch": 8,
            "unet": architecture.unet | {"in_channels": 4, "out_channels": 4},
            "vae": architecture.vae,
            "text_encoders": [clip | {"architectures": [kind]} for kind in kinds],
            "num_indicator_tokens": INDICATOR,
        }
    )


def schedule_config(architecture: Architecture) -> "ScheduleConfig":
    from ddm_rt.config import ScheduleConfig

    return ScheduleConfig(**_NOISE, timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False)


def table(architecture: Architecture, num_steps: int) -> "StepTable":
    from ddm_rt.config import SamplerName
    from ddm_rt.schedule import Schedule, step_table

    return step_table(Schedule.from_config(schedule_config(architecture)), SamplerName(architecture.sampler), num_steps)


def scheduler(architecture: Architecture) -> Any:
    """diffusers' own for the same noise levels."""
    import diffusers

    shared = _NOISE | {"timestep_spacing": "leading", "steps_offset": 1}
    if architecture.sampler == "euler":
        return diffusers.EulerDiscreteScheduler(**shared)
    return diffusers.DDIMScheduler(**shared, set_alpha_to_one=False, clip_sample=False)


def bundle(architecture: Architecture, *, indicator: bool) -> Any:
    """What `TorchEngine.of_networks` reads of a bundle: its configuration and its path, where no files are."""
    from ddm_rt.config import SamplingConfig
    from ddm_rt.runtime import Leaf, RuntimeConfig, TensorSpec, TextSpec

    width = architecture.context
    cond = [TensorSpec(name="text_tokens", shape=("tokens", width))]
    if indicator:
        cond.append(TensorSpec(name="indicator_tokens", shape=(INDICATOR, width)))
        cond.append(TensorSpec(name="code_scale", shape=()))
    added: list[TensorSpec] = []
    if architecture.pooled:
        added = [
            TensorSpec(name="text_embeds", shape=(architecture.pooled,)),
            TensorSpec(name="time_ids", shape=(6,)),
        ]
        cond += [
            TensorSpec(name="pooled_text", shape=(architecture.pooled,)),
            TensorSpec(name="sizes", shape=(6,)),
        ]
    inputs = ("input_ids", "input_ids_2")[: 2 if architecture.pooled else 1]
    config = RuntimeConfig(
        name=architecture.name,
        family=architecture.family,
        latent_shape=architecture.latent,
        image_size=architecture.pixels,
        channels=3,
        size_multiple=64,
        context_shape=(TEXT, width),
        prompt_free=False,
        text=tuple(TextSpec(tokenizer="none", input=name, max_length=TEXT, pad_id=1) for name in inputs),
        added=tuple(added),
        cond=tuple(cond),
        sampling=SamplingConfig(clip=None),
        codes=tuple(Leaf(code=k, top_code=k // 2, size=1, share_in_top=0.5) for k in range(CODES)) if indicator else (),
    )
    return SimpleNamespace(config=config, path=Path(architecture.name))


def build(architecture: Architecture, rig: "Rig", *, indicator: bool) -> "LatentDDM":
    """The networks in bf16 on the device, as the engine holds them."""
    from ddm_rt.engine.torch.eager import converted

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = drawn(architecture, rig.device, indicator=indicator)
    return converted(model.eval().requires_grad_(False), torch.bfloat16, torch.device(rig.device))


def drawn(architecture: Architecture, device: str, *, indicator: bool) -> "LatentDDM":
    """In float32, with weights as torch draws them for new modules."""
    from ddm_rt.model.latent import LatentDDM

    with torch.device(device):
        return LatentDDM(model_config(architecture), tuple((k // 2,) for k in range(CODES)) if indicator else ())


def plain_unet(model: "LatentDDM") -> Any:
    """diffusers' own UNet with the weights of `model`, which has no indicator. The engine's hooks stay out of it."""
    import diffusers

    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**dict(model.unet.config))
    unet.load_state_dict(model.unet.state_dict(), assign=True)
    return unet.eval().requires_grad_(False)


def contexts(architecture: Architecture, rows: int) -> dict[str, Any]:
    """Of `rows` prompts, on the host: `context` and, for SDXL, `text_embeds` and `time_ids`."""
    generator = np.random.default_rng(0)
    found = {"context": generator.standard_normal((rows, TEXT, architecture.context), np.float32)}
    if architecture.pooled:
        side = float(architecture.pixels)
        found["text_embeds"] = generator.standard_normal((rows, architecture.pooled), np.float32)
        found["time_ids"] = np.tile(np.array([side, side, 0, 0, side, side], np.float32), (rows, 1))
    return found


@cache
def flops(name: str, *, tiny: bool = False) -> dict[str, float]:
    """Multiplications and additions of one row of the UNet and of one decoded image, without the indicator's own."""
    from torch.utils.flop_counter import FlopCounterMode

    architecture = ARCHITECTURES[name](tiny=tiny)
    model = drawn(architecture, "meta", indicator=False)
    x = torch.empty(1, *architecture.latent, device="meta")
    cond = {"text_tokens": torch.empty(1, TEXT, architecture.context, device="meta")}
    if architecture.pooled:
        cond |= {"pooled_text": torch.empty(1, architecture.pooled, device="meta")}
        cond |= {"sizes": torch.empty(1, 6, device="meta")}
    found = {}
    with torch.no_grad():
        with FlopCounterMode(display=False) as counter:
            model(x, torch.empty(1, device="meta"), cond)
        found["unet"] = float(counter.get_total_flops())
        with FlopCounterMode(display=False) as counter:
            model.decode(x)
        found["decoder"] = float(counter.get_total_flops())
    return found
