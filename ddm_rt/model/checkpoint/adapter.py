"""An adapter that somebody published, merged into a checkpoint's layers."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint.adapter_files import Part, read_adapter
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
    """Fold the adapter at `adapter` into the layers of `model`: W' = W + scale·B·A, computed in float32.

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
        found = {module: encoder_name(module, layers) for module in part.factors}
        if not any(found.values()):
            first = next(iter(part.factors), "(none)")
            raise BundleError(
                f"{part.source}: none of its layers is in the base checkpoint's {part.component}, "
                f"the first is {first}: the adapter is for another base"
            )
        for module, name in found.items():
            if name is None:
                unmatched.append(f"{part.component}.{module}")
                continue
            changes.append((layers[name], _merged(part, module, layers[name].weight)))
            merged.append(f"{part.component}.{name}")
        unmatched += [f"{part.component}: {target}" for target in _idle(part.targets, layers)]
    for layer, weight in changes:
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    return AdapterReport(tuple(merged), tuple(unmatched))


def _merged(part: Part, module: str, weight: Tensor) -> Tensor:
    factors, want = part.factors[module], weight.shape
    # Both factors of a layer that is a 1x1 convolution may be stored as matrices, and the other way round.
    spatial = tuple(factors.a.shape[2:]) or (1, 1)
    shape = (factors.b.shape[0], factors.a.shape[1], *spatial)
    if shape != (*want, *(1, 1)[: 4 - len(want)]) or factors.b.shape[2:].numel() > 1:
        raise BundleError(
            f"{part.source}: layer {module} is for a weight of {list(shape[: len(want)])}; the base checkpoint's is "
            f"{list(want)}: the adapter is for another base"
        )
    delta = factors.b.float().flatten(1) @ factors.a.float().flatten(1)  # [out, in·h·w]
    merged = (weight.float() + factors.scale * delta.view(want)).to(weight.dtype)
    if not torch.isfinite(merged).all():
        raise BundleError(f"{part.source}: layer {module} has non-finite values, alone or added to the base's")
    return merged


def _idle(targets: tuple[str, ...] | str, layers: Iterable[str]) -> Iterator[str]:
    """Those of `targets` that no layer answers to."""
    names = tuple(layers)
    if isinstance(targets, str):
        if targets != _ALL_LINEAR and not any(re.fullmatch(targets, name) for name in names):
            yield targets
        return
    yield from (t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names))
