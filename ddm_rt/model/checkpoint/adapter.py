"""Low-rank adapters that somebody published, PEFT's folders and single files of diffusers or kohya: read as tensors by
layer, and merged into a checkpoint's layers by peft.
"""

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import DIFFUSERS_OLD_TO_PEFT, UNET_TO_DIFFUSERS, convert_state_dict
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, Field
from torch import Tensor, nn

from ddm_rt.config import parse
from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint import stored
from ddm_rt.model.checkpoint.component_config import TEXT_ENCODERS, read_json
from ddm_rt.model.checkpoint.folder import component_module, encoder_name
from ddm_rt.model.latent import LatentDDM

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
SETTINGS = "adapter_config.json"
SINGLE_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_METADATA = "lora_adapter_metadata of the header"  # PEFT's settings, by component, in a file of diffusers
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")
_EXPECTED = "low-rank factors named unet.LAYER.lora_A.weight and the like"

ALPHA, MAGNITUDE = "alpha", "lora_magnitude_vector"
# PEFT may add the adapter's name.
_TENSOR = re.compile(rf"(.+?)\.(?:(lora_[AB])(?:\.[^.]+)?\.weight|({MAGNITUDE})(?:\.[^.]+)??(?:\.weight)?)")
# Older names of factors. diffusers doesn't know ".lora." in a text encoder, nor ".lora_down" behind names of its own.
_ENCODER_NAMES = DIFFUSERS_OLD_TO_PEFT | {
    f".lora{mark}{side}": f".lora_{factor}" for mark in "._" for side, factor in (("down", "A"), ("up", "B"))
}
_UNET_NAMES = _ENCODER_NAMES | UNET_TO_DIFFUSERS

# Settings of PEFT that change the merged weight beyond what `Settings` has, and the only value that is read here.
_ONLY: dict[str, Any] = {
    **{"peft_type": "LORA", "bias": "none", "lora_bias": False, "use_qalora": False},
    **dict.fromkeys(("modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters")),
    **dict.fromkeys(("alora_invocation_tokens", "use_bdlora", "arrow_config", "kasa_config", "velora_config")),
    **dict.fromkeys(("monteclora_config", "corda_config", "lora_ga_config")),
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that start from another base weight

_ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer


class Settings(BaseModel):
    """The fields of adapter_config.json that decide a merged weight; the others are ignored or refused."""

    r: int = Field(ge=1)
    lora_alpha: float = Field(allow_inf_nan=False)
    use_rslora: bool = False
    use_dora: bool = False
    rank_pattern: dict[re.Pattern[str], int] = Field(default_factory=dict)
    alpha_pattern: dict[re.Pattern[str], float] = Field(default_factory=dict)
    target_modules: list[str] | re.Pattern[str] | None = None


@dataclass
class Part:
    """What an adapter holds for one component."""

    component: str
    source: Path
    settings: Settings | None  # None: the scale is each layer's alpha over its rank, or else 1
    # By the layer's path: lora_A [r, in] or [r, in, h, w], lora_B [out, r] or [out, r, 1, 1]; DoRA: `MAGNITUDE`.
    layers: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def config(self, layer: str) -> LoraConfig:
        """PEFT's settings of one layer. Raises BundleError where its tensors don't fit each other or the settings."""
        tensors, settings, where = self.layers[layer], self.settings, f"{self.source}: layer {layer} has"
        if not {"lora_A", "lora_B"} <= tensors.keys():
            raise BundleError(f"{where} the factor {min(tensors)[-1]} alone; expected A and B")
        a, b = tensors["lora_A"], tensors["lora_B"]
        rank = len(a) if a.ndim else 0
        if b.ndim != a.ndim or a.ndim not in (2, 4) or b.shape[1] != rank or not rank:
            raise BundleError(
                f"{where} the factors A {list(a.shape)} and B {list(b.shape)}; expected A [r, in] and B [out, r]"
            )
        dora = MAGNITUDE in tensors
        if settings is None:
            return LoraConfig(r=rank, lora_alpha=float(tensors.get(ALPHA, rank)), use_dora=dora)
        said, alpha = (
            {pattern.pattern: value for pattern, value in patterns.items()}
            for patterns in (settings.rank_pattern, settings.alpha_pattern)
        )
        if (expected := said.get(get_pattern_key(list(said), layer), settings.r)) != rank:
            raise BundleError(f"{where} rank {rank}; its settings (r, rank_pattern) say {expected}")
        if settings.use_dora != dora:
            raise BundleError(f"{where} {'a' if dora else 'no'} {MAGNITUDE}; its settings say use_dora: {not dora}")
        return LoraConfig(
            r=rank,
            lora_alpha=alpha.get(get_pattern_key(list(alpha), layer), settings.lora_alpha),
            use_rslora=settings.use_rslora,
            use_dora=dora,
        )


@dataclass(frozen=True)
class AdapterReport:
    """What an adapter changed, and what it names that the checkpoint hasn't got."""

    merged: tuple[str, ...]  # unet.down_blocks.0...
    unmatched: tuple[str, ...]  # layers, or names among its target modules


def read_adapter(path: Path, unet: UNet2DConditionModel) -> list[Part]:
    """The parts of the adapter at `path`: a PEFT folder, one for each component, or a single file.

    kohya numbers the blocks of SDXL's UNet otherwise; the sizes of `unet` say how. Raises BundleError naming the file,
    and the field or tensor that is missing, malformed, or of a kind that isn't low-rank adaptation.
    """
    if not path.exists():
        raise BundleError(f"{path}: no such adapter")
    if path.is_file():
        return _single_file(path, unet)
    if (path / SETTINGS).is_file():
        return [_peft(path, "unet")]
    if parts := [_peft(path / name, name) for name in COMPONENTS if (path / name / SETTINGS).is_file()]:
        return parts
    for name in SINGLE_FILES:
        if (path / name).is_file():
            return _single_file(path / name, unet)
    raise BundleError(
        f"{path}: not an adapter; expected unet/{SETTINGS} (PEFT), {SETTINGS} itself, or {SINGLE_FILES[0]} (diffusers)"
    )


def _peft(folder: Path, component: str) -> Part:
    where = folder / SETTINGS
    settings = _settings(read_json(where), where)
    source = next((folder / name for name in _PEFT_FILES if (folder / name).is_file()), None)
    if source is None:
        raise BundleError(f"{folder}: no weights; expected {' or '.join(_PEFT_FILES)}")
    tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in stored.read(source)}
    return _part(component, source, tensors, settings)


def _single_file(path: Path, unet: UNet2DConditionModel) -> list[Part]:
    stored_tensors = dict(stored.read(path))
    for name, value in stored_tensors.items():
        if "dora_scale" in name:
            raise BundleError(
                f"{path}: tensor {name}: DoRA is not supported in kohya's layout, which diffusers reads without it"
            )
        if name.endswith(f".{ALPHA}") and not (value.numel() == 1 and torch.isfinite(value).all()):
            raise BundleError(f"{path}: tensor {name}: expected one finite number")
    kohya = all(name.startswith(_KOHYA) for name in stored_tensors)
    header = path.suffix == ".safetensors"  # diffusers keeps PEFT's settings there, which no dictionary has
    try:
        tensors, alphas, metadata = StableDiffusionLoraLoaderMixin.lora_state_dict(
            path if header else dict(stored_tensors),
            **{"weight_name": path.name, "use_safetensors": True, "local_files_only": True},
            unet_config=unet.config,
            return_lora_metadata=True,
        )
        settings = {component: _below(component, {} if metadata is None else metadata) for component in COMPONENTS}
    except Exception as error:  # diffusers checks nothing: whatever taking it apart comes to
        what = "names of kohya's layout that diffusers can't read" if kohya else f"field {_METADATA} is malformed"
        first = str(error).split("\n")[0]
        raise BundleError(f"{path}: {what} ({first})") from error
    tensors |= {name: torch.tensor(value) for name, value in (alphas or {}).items()}
    if len(tensors) != len(stored_tensors):
        raise BundleError(f"{path}: {len(stored_tensors)} tensors, of which diffusers can read {len(tensors)}")
    if foreign := [name for name in tensors if not name.startswith(tuple(f"{c}." for c in COMPONENTS))]:
        raise BundleError(f"{path}: tensor {foreign[0]} is foreign; expected {_EXPECTED}")
    parts = []
    for component in COMPONENTS:
        if named := _below(component, tensors):
            own = settings[component]
            parts.append(_part(component, path, named, _settings(own, path) if own else None))
    if not parts:
        raise BundleError(f"{path}: it is empty; expected {_EXPECTED}")
    return parts


def _below(component: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in tree.items() if name.startswith(prefix)}


def _part(component: str, source: Path, tensors: dict[str, Tensor], settings: Settings | None) -> Part:
    part = Part(component, source, settings)
    names = _UNET_NAMES if component == "unet" else _ENCODER_NAMES
    for name, tensor in convert_state_dict(tensors, names).items():
        # An alpha is called after the layer, or after its first factor.
        alpha = settings is None and name.endswith(f".{ALPHA}")
        owner = name.removesuffix(f".{ALPHA}") if alpha else name
        found = _TENSOR.fullmatch(owner)
        if found is None and not alpha:
            raise BundleError(f"{source}: tensor {name} is not a factor of plain low-rank adaptation (LoRA)")
        layer, kind = (owner, ALPHA) if found is None else (found[1], ALPHA if alpha else found[2] or found[3])
        part.layers.setdefault(layer, {})[kind] = tensor
    part.layers = {layer: held for layer, held in part.layers.items() if held.keys() != {ALPHA}}
    if not part.layers:
        raise BundleError(f"{source}: it is empty; expected low-rank factors for layers of the {component}")
    return part


def _settings(tree: Any, where: Path) -> Settings:
    settings = parse(Settings, tree, where)
    for name, only in _ONLY.items():
        if tree.get(name) and tree[name] != only:
            raise BundleError(f"{where}: field {name}: {tree[name]!r} is not supported; expected {only!r}")
    start = tree.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise BundleError(
            f"{where}: field init_lora_weights: {start!r} is not supported: the factors belong to a changed base; "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) makes plain ones"
        )
    return settings


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
