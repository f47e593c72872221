"""An adapter that somebody published, merged into a checkpoint's layers by peft."""

import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint.adapter_files import MAGNITUDE, Part, read_adapter
from ddm_rt.model.checkpoint.component_config import TEXT_ENCODERS
from ddm_rt.model.checkpoint.folder import component_module, encoder_name
from ddm_rt.model.latent import LatentDDM

_ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter changed, and what it names that the checkpoint hasn't got."""

    merged: tuple[str, ...]  # unet.down_blocks.0...
    unmatched: tuple[str, ...]  # layers, or names among its target modules


def merge_adapter(model: LatentDDM, adapter: Path) -> AdapterReport:
    """Fold the adapter at `adapter` into the layers of `model`, computed in float32: W' = W + scale·B·A, or DoRA's.

    A PEFT folder (unet/, optional text_encoder/), one PEFT adapter for the UNet, or a single file. Nothing changes on
    an error: BundleError for files that can't be read, kinds of adapters other than LoRA, and adapters of another
    base (no layer of that name, other shapes), naming the first layer.
    """
    merged: list[str] = []
    unmatched: list[str] = []
    changes: list[tuple[nn.Linear | nn.Conv2d, Tensor]] = []
    for part in read_adapter(adapter, model.unet):
        if part.component not in ("unet", *TEXT_ENCODERS[model.family]):
            raise BundleError(f"{part.source}: is for a {part.component}, which a checkpoint of this family hasn't got")
        component = component_module(model, part.component)
        layers = {name: layer for name, layer in component.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
        found = {module: encoder_name(module, layers) for module in part.layers}
        if not any(found.values()):
            raise BundleError(
                f"{part.source}: none of its layers is in the base checkpoint's {part.component}, "
                f"the first is {next(iter(found))}: the adapter is for another base"
            )
        for module, name in found.items():
            if name is None:
                unmatched.append(f"{part.component}.{module}")
            else:
                changes.append((layers[name], _merged(part, module, layers[name])))
                merged.append(f"{part.component}.{name}")
        unmatched += [f"{part.component}: {target}" for target in _idle(part, layers)]
    for layer, weight in changes:
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    return AdapterReport(tuple(merged), tuple(unmatched))


def _merged(part: Part, module: str, layer: nn.Linear | nn.Conv2d) -> Tensor:
    config, tensors, want = part.config(module), part.layers[module], layer.weight.shape
    a, b, magnitude = tensors["lora_A"], tensors["lora_B"], tensors.get(MAGNITUDE)
    # Both factors of a layer that is a 1x1 convolution may be stored as matrices, and the other way round.
    shape = (len(b), *a.shape[1:], *(1, 1)[: 4 - a.ndim])
    odd = magnitude is not None and magnitude.numel() != want[0]
    if odd or shape != (*want, *(1, 1)[: 4 - len(want)]) or b.shape[2:].numel() > 1:
        raise BundleError(
            f"{part.source}: layer {module} is for a weight of {list(shape[: len(want)])}; the base checkpoint's is "
            f"{list(want)}: the adapter is for another base"
        )
    own = {"lora_A.weight": a.view(-1, *want[1:]), "lora_B.weight": b.view(want[0], -1, *(1, 1)[: len(want) - 2])}
    if magnitude is not None:
        own[MAGNITUDE] = magnitude.view(-1) if len(want) == 2 else magnitude.view(1, -1, 1, 1)
    # A copy, so that the base stays whole on an error. The empty factors are on the meta device: none is drawn.
    alone = nn.ModuleDict({"layer": copy.deepcopy(layer).float()})
    config.target_modules = {"layer"}
    inject_adapter_in_model(config, alone, low_cpu_mem_usage=True)
    floats = {f"layer.{name}": tensor.float() for name, tensor in own.items()}
    set_peft_model_state_dict(alone, floats, low_cpu_mem_usage=True)
    wrapped: Any = alone["layer"]
    wrapped.merge()
    merged: Tensor = wrapped.get_base_layer().weight.detach().to(layer.weight.dtype)
    if not torch.isfinite(merged).all():
        raise BundleError(f"{part.source}: layer {module} has non-finite values, alone or added to the base's")
    return merged


def _idle(part: Part, layers: Iterable[str]) -> list[str]:
    """The target modules that match no layer."""
    targets, names = part.settings.target_modules if part.settings is not None else None, tuple(layers)
    if isinstance(targets, re.Pattern):
        idle = targets.pattern != _ALL_LINEAR and not any(map(targets.fullmatch, names))
        return [targets.pattern] if idle else []
    return [t for t in sorted(targets or ()) if not any(f".{name}".endswith(f".{t}") for name in names)]
