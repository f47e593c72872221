"""Published low-rank adapters as factors per layer: PEFT's folders, and single files of diffusers or kohya."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, Field, field_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddm_rt.config import parse
from ddm_rt.errors import BundleError
from ddm_rt.model.checkpoint import stored
from ddm_rt.model.checkpoint.component_config import read_json
from ddm_rt.model.checkpoint.factor_names import ALPHA, alpha_layer, factor_name

T = TypeVar("T")

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
SETTINGS = "adapter_config.json"
_PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
SINGLE_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")
_METADATA = "lora_adapter_metadata"  # diffusers' key in a safetensors header: PEFT's settings, by component
_KOHYA = ("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")

# Settings of PEFT that change the merged weight beyond α/r·BA, and the values that leave it at that.
_ONLY: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "bias": ("none", None),
    "use_dora": (False, None),
    "lora_bias": (False, None),
    "use_qalora": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    **dict.fromkeys(("use_bdlora", "arrow_config", "kasa_config", "velora_config", "monteclora_config"), (None, False)),
    **dict.fromkeys(("corda_config", "lora_ga_config"), (None, {})),
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # init_lora_weights that start from another base weight


class PeftSettings(BaseModel):
    """The fields of adapter_config.json that decide a merged weight; the others are ignored or refused."""

    r: int = Field(ge=1)
    lora_alpha: float = Field(allow_inf_nan=False)
    use_rslora: bool = False
    rank_pattern: dict[str, int] = Field(default_factory=dict)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    target_modules: list[str] | str | None = None

    @field_validator("rank_pattern", "alpha_pattern", "target_modules")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        for pattern in (value,) if isinstance(value, str) else value if isinstance(value, dict) else ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return value

    def scale(self, module: str, rank: int) -> float:
        """The factor of BA: α/r, or α/√r with rslora (arXiv 2312.03732)."""
        alpha = self.alpha_pattern.get(get_pattern_key(list(self.alpha_pattern), module), self.lora_alpha)
        return float(alpha) / (rank**0.5 if self.use_rslora else rank)

    def rank(self, module: str) -> int:
        return self.rank_pattern.get(get_pattern_key(list(self.rank_pattern), module), self.r)


@dataclass
class Factors:
    """One layer's: the weight becomes W + scale·B·A."""

    a: Tensor  # [r, in] or, for a convolution, [r, in, h, w]
    b: Tensor  # [out, r] or [out, r, 1, 1]
    scale: float


@dataclass
class Part:
    """What an adapter holds for one component."""

    component: str
    source: Path
    factors: dict[str, Factors] = field(default_factory=dict)  # by the layer's path in the component
    targets: tuple[str, ...] | str = ()  # the names that it says it adapts, or a pattern


def read_adapter(path: Path, unet: UNet2DConditionModel) -> list[Part]:
    """The parts of the adapter at `path`: a PEFT folder, one for each component, or a single file.

    `unet` tells the SDXL layout to kohya's block numbers. Raises BundleError naming the file, and the field or tensor
    that is missing, malformed, or of a kind that isn't plain low-rank adaptation.
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
    named = ((name.removeprefix("base_model.model."), tensor) for name, tensor in stored.read(source))
    return _part(component, source, named, settings, {})


def _single_file(path: Path, unet: UNet2DConditionModel) -> list[Part]:
    tensors = dict(stored.read(path))
    if odd := [name for name in tensors if "dora_scale" in name or "lora_magnitude" in name]:
        raise BundleError(f"{path}: tensor {odd[0]}: DoRA is not supported; merge it into a checkpoint with diffusers")
    if tensors and all(name.startswith(_KOHYA) for name in tensors):
        tensors = _from_kohya(path, tensors, unet)
    if foreign := [name for name in tensors if not name.startswith(tuple(f"{c}." for c in COMPONENTS))]:
        raise BundleError(
            f"{path}: tensor {foreign[0]} is foreign; expected low-rank factors named unet.LAYER.lora_A.weight "
            "and the like"
        )
    metadata = _metadata(path)
    parts = []
    for component in COMPONENTS:
        named, own = _below(component, tensors), _below(component, metadata)
        if named:
            alphas = {
                alpha_layer(name, component): _alpha(value, f"{path}: tensor {component}.{name}")
                for name, value in named.items()
                if name.endswith(ALPHA)
            }
            factors = ((name, tensor) for name, tensor in named.items() if not name.endswith(ALPHA))
            parts.append(_part(component, path, factors, _settings(own, path) if own else None, alphas))
    if not parts:
        raise BundleError(f"{path}: it is empty; expected low-rank factors named unet.LAYER.lora_A.weight and the like")
    return parts


def _below(component: str, tree: Mapping[str, T]) -> dict[str, T]:
    prefix = f"{component}."
    return {name.removeprefix(prefix): value for name, value in tree.items() if name.startswith(prefix)}


def _alpha(value: Tensor, where: str) -> float:
    if value.numel() != 1 or not torch.isfinite(value).all():
        raise BundleError(f"{where}: expected one finite number")
    return float(value)


def _part(
    component: str,
    source: Path,
    named: Iterator[tuple[str, Tensor]],
    settings: PeftSettings | None,
    alphas: Mapping[str, float],
) -> Part:
    """Pairs of factors by layer. The scale is that of the settings, else α over the rank, else 1."""
    sides: dict[str, dict[str, Tensor]] = {}
    for name, tensor in named:
        found = factor_name(name, component)
        if found is None:
            raise BundleError(f"{source}: tensor {name} is not a factor of plain low-rank adaptation (LoRA)")
        sides.setdefault(found.module, {})[found.side] = tensor
    if not sides:
        raise BundleError(f"{source}: it is empty; expected low-rank factors for layers of the {component}")
    part = Part(component, source)
    for module, pair in sides.items():
        if pair.keys() != {"A", "B"}:
            raise BundleError(f"{source}: layer {module} has the factor {min(pair)} alone; expected A and B")
        rank = pair["A"].shape[0] if pair["A"].ndim else 0
        if pair["B"].ndim != pair["A"].ndim or pair["A"].ndim not in (2, 4) or pair["B"].shape[1] != rank or not rank:
            raise BundleError(
                f"{source}: layer {module} has the factors A {list(pair['A'].shape)} and B {list(pair['B'].shape)}; "
                "expected A [r, in] and B [out, r]"
            )
        if settings is not None and settings.rank(module) != rank:
            raise BundleError(
                f"{source}: layer {module} has rank {rank}; its settings (r, rank_pattern) say {settings.rank(module)}"
            )
        scale = settings.scale(module, rank) if settings is not None else alphas.get(module, rank) / rank
        part.factors[module] = Factors(pair["A"], pair["B"], scale)
    if settings is not None and settings.target_modules is not None:
        names = settings.target_modules
        part.targets = names if isinstance(names, str) else tuple(sorted(names))
    return part


def _settings(tree: Any, where: Path) -> PeftSettings:
    settings = parse(PeftSettings, tree, where)
    for name, allowed in _ONLY.items():
        if tree.get(name) not in allowed:
            raise BundleError(f"{where}: field {name}: {tree[name]!r} is not supported; expected {allowed[0]!r}")
    start = tree.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise BundleError(
            f"{where}: field init_lora_weights: {start!r} is not supported: the factors belong to a changed base; "
            "PEFT's save_pretrained(path_initial_model_for_weight_conversion=...) makes plain ones"
        )
    return settings


def _from_kohya(path: Path, tensors: dict[str, Tensor], unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """kohya's names (lora_unet_down_blocks_0_...) as diffusers'. Raises BundleError where diffusers can't."""
    for name, tensor in tensors.items():
        if name.endswith(ALPHA):
            _alpha(tensor, f"{path}: tensor {name}")
    try:
        renamed, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=unet.config)
    except Exception as error:  # diffusers checks no names: whatever taking them apart comes to
        first = str(error).split("\n")[0]
        raise BundleError(f"{path}: names of kohya's layout that diffusers can't read ({first})") from error
    found: dict[str, Tensor] = renamed | {name: torch.tensor(value) for name, value in (alphas or {}).items()}
    if len(found) != len(tensors):
        raise BundleError(f"{path}: {len(tensors)} tensors in kohya's layout, of which diffusers can read {len(found)}")
    return found


def _metadata(path: Path) -> dict[str, Any]:
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA)
        tree = json.loads(text) if text else {}
    except (SafetensorError, ValueError) as error:
        raise BundleError(f"{path}: field {_METADATA} of the header is malformed ({error})") from error
    if not isinstance(tree, dict):
        raise BundleError(f"{path}: field {_METADATA} of the header is malformed (expected a JSON object)")
    return tree
