"""Low-rank adapters of tiny checkpoints, written by peft and diffusers themselves, and their networks with one on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor, nn

from ddm_rt.model.checkpoint.folder import load_base, read_checkpoint
from ddm_rt.model.latent import LatentDDM

UNET_TARGETS = ("to_q", "to_v", "query", "value")  # the last two of the DDM authors' script match no layer of today
ENCODER_TARGETS = ("q_proj", "v_proj")
PROMPT = "a photo of a doctor"


def pipeline(checkpoint: Path) -> Any:
    """diffusers' own pipeline, quiet."""
    found = DiffusionPipeline.from_pretrained(checkpoint)
    found.set_progress_bar_config(disable=True)
    return found


def load(checkpoint: Path) -> LatentDDM:
    """The networks of the checkpoint, without an indicator."""
    found = read_checkpoint(checkpoint)
    with torch.device("meta"):
        model = LatentDDM(found.model)
    load_base(model, found)
    return model.eval().requires_grad_(False)


def settings(component: str, **more: Any) -> LoraConfig:
    targets = UNET_TARGETS if component == "unet" else ENCODER_TARGETS
    arguments: dict[str, Any] = {"r": 8, "lora_alpha": 32, "target_modules": list(targets)}
    return LoraConfig(**arguments | more)


def write_peft(
    checkpoint: Path, folder: Path, *, encoders: tuple[str, ...] = (), safe: bool = True, seed: int = 0, **more: Any
) -> Path:
    """An adapter as PEFT's `save_pretrained` lays it out, a folder for each component; every factor is drawn."""
    pipe = pipeline(checkpoint)
    for component in ("unet", *encoders):
        model = get_peft_model(getattr(pipe, component), settings(component, **more))
        draw(model, seed)
        model.save_pretrained(folder / component, safe_serialization=safe)
    return folder


def with_peft(checkpoint: Path, folder: Path) -> Any:
    """The pipeline with the adapter of `write_peft` on, through peft, not merged."""
    pipe = pipeline(checkpoint)
    for component in sorted(path.name for path in folder.iterdir()):
        setattr(
            pipe, component, PeftModel.from_pretrained(getattr(pipe, component), folder / component).base_model.model
        )
    return pipe


def write_single_file(
    checkpoint: Path, folder: Path, *, encoders: tuple[str, ...] = (), metadata: bool = False, **more: Any
) -> tuple[Path, Any]:
    """The file of diffusers' `save_lora_weights`, and the pipeline with the adapter on, not merged."""
    pipe = pipeline(checkpoint)
    arguments: dict[str, Any] = {}
    for component in ("unet", *encoders):
        module = getattr(pipe, component)
        config = settings(component, **more)
        inject_adapter_in_model(config, module)
        draw(module, seed=1)
        arguments[f"{component}_lora_layers"] = get_peft_model_state_dict(module)
        if metadata:
            arguments[f"{component}_lora_adapter_metadata"] = config.to_dict()
    type(pipe).save_lora_weights(folder, **arguments)
    return folder / "pytorch_lora_weights.safetensors", pipe


def write_kohya(checkpoint: Path, path: Path, *, alpha: float, sdxl: bool = False) -> Path:
    """A file in kohya's layout: to_q of every block and q_proj of the text encoder's first layer, rank 4."""
    pipe = pipeline(checkpoint)
    generator = torch.Generator().manual_seed(2)
    layers = {
        f"lora_unet_{name.replace('.', '_')}": layer
        for name, layer in pipe.unet.named_modules()
        if name.endswith("to_q")
    }
    first = next(m for name, m in pipe.text_encoder.named_modules() if name.endswith("layers.0.self_attn.q_proj"))
    layers[f"lora_te{'1' * sdxl}_text_model_encoder_layers_0_self_attn_q_proj"] = first
    tensors: dict[str, Tensor] = {}
    for stem, layer in layers.items():
        tensors[f"{stem}.lora_down.weight"] = 0.1 * torch.randn((4, layer.in_features), generator=generator)
        tensors[f"{stem}.lora_up.weight"] = 0.1 * torch.randn((layer.out_features, 4), generator=generator)
        tensors[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


def write_pickle(path: Path, ran: Path) -> Path:
    """A .bin file that makes the file `ran` when it is unpickled without care."""

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (ran,)

    torch.save({"weight": Trap()}, path)
    return path


def put_networks(pipe: Any, model: LatentDDM) -> None:
    """Let the pipeline use the model's networks."""
    pipe.unet, pipe.vae = model.unet, model.vae
    for name, encoder in zip(("text_encoder", "text_encoder_2"), model.text_encoders, strict=False):
        setattr(pipe, name, encoder)


def draw(module: nn.Module, seed: int) -> None:
    """Random factors: B starts at zero, which would hide everything."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def noise(pipe: Any) -> Tensor:
    """Initial latents [1,4,H,W] at the checkpoint's size, drawn."""
    side = pipe.unet.config.sample_size
    return torch.randn((1, 4, side, side), generator=torch.Generator().manual_seed(3))


@torch.inference_mode()
def latents(pipe: Any, num_steps: int = 20) -> Tensor:
    """Latents [1,4,H,W] after `num_steps` of the checkpoint's scheduler from `noise`."""
    found: Tensor = pipe(PROMPT, num_inference_steps=num_steps, latents=noise(pipe), output_type="latent").images
    return found


def token_ids(pipe: Any, family: str) -> tuple[Tensor, ...]:
    """Of `PROMPT`, int64 [1,77] for each tokenizer."""
    names = ("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",)
    return tuple(
        getattr(pipe, name)(PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
        for name in names
    )


def unet_inputs(pipe: Any, batch: int = 2) -> tuple[Tensor, Tensor, Tensor, Mapping[str, Tensor]]:
    """x_t, t, context and SDXL's further conditions, all drawn."""
    generator = torch.Generator().manual_seed(4)
    config = pipe.unet.config
    side = config.sample_size
    x_t = torch.randn((batch, 4, side, side), generator=generator)
    t = 999 * torch.rand(batch, generator=generator)
    context = torch.randn((batch, 77, config.cross_attention_dim), generator=generator)
    if config.addition_embed_type is None:
        return x_t, t, context, {}
    pooled = torch.randn((batch, pipe.text_encoder_2.config.projection_dim), generator=generator)
    return x_t, t, context, {"text_embeds": pooled, "time_ids": 64.0 * torch.ones(batch, 6)}
