"""Published low-rank adapters as tensors by layer: PEFT's folders, and single files of diffusers or kohya."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils.state_dict_utils import DIFFUSERS_OLD_TO_PEFT, UNET_TO_DIFFUSERS, convert_state_dict
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, Field
from torch import Tensor

from ddm_rt.config import parse
from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint import stored
from ddm_rt.model.checkpoint.component_config import read_json

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
