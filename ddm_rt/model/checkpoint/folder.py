"""A Stable Diffusion checkpoint in diffusers' format, checked, and its weights into and out of `LatentDDM`."""

import hashlib
import shutil
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTokenizerFast

from ddm_rt.config import BaseConfig, Family, ModelConfig, SamplingConfig, ScheduleConfig
from ddm_rt.errors import BundleError
from ddm_rt.files import sha256, write_json
from ddm_rt.model.checkpoint import stored
from ddm_rt.model.checkpoint.component_config import (
    ENCODER_CLASSES,
    TEXT_ENCODERS,
    image_size,
    read_json,
    read_networks,
)
from ddm_rt.model.checkpoint.scheduler_config import read_scheduler
from ddm_rt.model.latent import LatentDDM

MODEL_INDEX = "model_index.json"
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family.SD,
    "StableDiffusionImg2ImgPipeline": Family.SD,
    "StableDiffusionXLPipeline": Family.SDXL,
    "StableDiffusionXLImg2ImgPipeline": Family.SDXL,
}
_SUPPORTED = f"supported: {', '.join(FAMILIES)}"
_PIPELINES = {Family.SD: "StableDiffusionPipeline", Family.SDXL: "StableDiffusionXLPipeline"}
_GUIDANCE = {Family.SD: 7.5, Family.SDXL: 5.0}  # diffusers' own defaults
# As with `TEXT_ENCODERS`, in the order of the UNet.
TOKENIZERS: dict[Family, tuple[str, ...]] = {Family.SD: ("tokenizer",), Family.SDXL: ("tokenizer", "tokenizer_2")}
_TOKENIZER_LAYOUTS = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.json", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
_CLIP_LENGTH = 77  # tokens, where a text encoder doesn't say
_DIFFUSERS_STEMS = ("diffusion_pytorch_model",)
_ENCODER_STEMS = ("model", "pytorch_model")


@dataclass(frozen=True)
class Checkpoint:
    """A checked folder in diffusers' format. Nothing of its weights is in memory."""

    path: Path
    model: ModelConfig
    schedule: ScheduleConfig
    sampling: SamplingConfig
    stands_for: str | None  # diffusers' scheduler, where the sampler is its nearest but not its equal
    tokenizers: tuple[Path, ...]  # folders: tokenizer.json, or vocab.json with merges.txt
    image_size: int  # pixels a side
    empty_negative_is_zero: bool
    variant: str | None = None

    @cached_property
    def base(self) -> BaseConfig:
        """The entry for a run's configuration; reads every file of the checkpoint for it."""
        digest = _digest(self.path, self.model.family, self.variant)
        return BaseConfig(path=self.path.resolve(), sha256=digest, variant=self.variant)


def read_checkpoint(path: Path, variant: str | None = None) -> Checkpoint:
    """Read and check the checkpoint at `path`; `variant` picks among its weight files, for example fp16.

    Raises BundleError naming the file and field where it isn't Stable Diffusion 1.x, 2.x or XL, a component is
    missing, or components don't fit each other.
    """
    if not path.is_dir():
        raise BundleError(f"{path}: no such directory; expected a checkpoint folder in diffusers' format")
    index = read_json(path / MODEL_INDEX)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise BundleError(f"{path / MODEL_INDEX}: field _class_name: {name!r} is not supported; {_SUPPORTED}")
    family = FAMILIES[name]
    if index.get("requires_aesthetics_score"):
        raise BundleError(f"{path / MODEL_INDEX}: field requires_aesthetics_score: refiners are not supported")
    folders = ("unet", "vae", "scheduler", *TEXT_ENCODERS[family], *TOKENIZERS[family])
    for folder in folders:
        if not (path / folder).is_dir():
            raise BundleError(f"{path / folder}: missing; a {_PIPELINES[family]} has {', '.join(folders)}")
    model = read_networks(path, family)
    _components(path, family, variant)
    schedule_path = path / "scheduler" / "scheduler_config.json"
    scheduler = read_scheduler(read_json(schedule_path), schedule_path, _GUIDANCE[family])
    tokenizers = tuple(path / name for name in TOKENIZERS[family])
    for place in tokenizers:
        if not any(all((place / file).is_file() for file in layout) for layout in _TOKENIZER_LAYOUTS):
            raise BundleError(f"{place}: no tokenizer; expected tokenizer.json, or vocab.json with merges.txt")
    return Checkpoint(
        path=path,
        model=model,
        schedule=scheduler.schedule,
        sampling=scheduler.sampling,
        stands_for=scheduler.stands_for,
        tokenizers=tokenizers,
        image_size=image_size(model, path),
        empty_negative_is_zero=family is Family.SDXL and bool(index.get("force_zeros_for_empty_prompt", True)),
        variant=variant,
    )


def load_base(
    model: LatentDDM,
    checkpoint: Checkpoint,
    dtype: torch.dtype | None = torch.float32,
    only: Container[str] | None = None,
) -> None:
    """Fill unet, vae and text encoders of `model`, or those of them named in `only`, in `dtype` (None: as they are
    stored); the indicator is left alone.

    `model` may be on the meta device. Tensors of `dtype` are mapped from the files, not copied: nothing may write
    into those files while the model lives. Raises BundleError naming the file and the first tensor that is missing,
    foreign, of another shape or not finite.
    """
    for component, files in _components(checkpoint.path, checkpoint.model.family, checkpoint.variant).items():
        if only is None or component in only:
            fill(component_module(model, component), files, dtype)


def save_checkpoint(model: LatentDDM, like: Checkpoint, out: Path, dtype: torch.dtype) -> None:
    """Write unet, vae and text encoders of `model` in `dtype` as a folder in diffusers' format, plain pipeline and all.

    The rest (scheduler, tokenizers, configurations) is that of `like`. The indicator is left out. `out` must exist;
    an interrupted call leaves it incomplete.
    """
    family = like.model.family
    index: dict[str, Any] = {
        key: value
        for key, value in read_json(like.path / MODEL_INDEX).items()
        if key in ("_diffusers_version", "force_zeros_for_empty_prompt")
    }
    index["_class_name"] = _PIPELINES[family]
    scheduler = read_json(like.path / "scheduler" / "scheduler_config.json")
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {name: ["transformers", ENCODER_CLASSES[name]] for name in TEXT_ENCODERS[family]}
    index |= {name: ["transformers", "CLIPTokenizer"] for name in TOKENIZERS[family]}
    if family is Family.SD:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    for component in ("unet", "vae", *TEXT_ENCODERS[family]):
        (out / component).mkdir()
        config = read_json(like.path / component / "config.json")
        encoder = component in TEXT_ENCODERS[family]
        if encoder:
            config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
            config["torch_dtype"] = str(dtype).removeprefix("torch.")
        write_json(out / component / "config.json", config)
        stem = _ENCODER_STEMS[0] if encoder else _DIFFUSERS_STEMS[0]
        found = component_module(model, component).state_dict()
        save_file(
            {_public(component, name): found[name].to(dtype).contiguous() for name in _own(found)},
            out / component / f"{stem}.safetensors",
            metadata={"format": "pt"},
        )
        (out / component / f"{stem}.safetensors").chmod(0o644)  # safetensors makes it the owner's alone
    (out / "scheduler").mkdir()
    write_json(out / "scheduler" / "scheduler_config.json", scheduler)
    for folder in like.tokenizers:
        (out / folder.name).mkdir()
        for file in _tokenizer_files(folder):
            shutil.copyfile(file, out / folder.name / file.name)
    write_json(out / MODEL_INDEX, index)


def component_module(model: LatentDDM, component: str) -> nn.Module:
    """The module of `model` that the folder `component` of a checkpoint holds."""
    if component in ("unet", "vae"):
        module: nn.Module = getattr(model, component)
        return module
    return model.text_encoders[TEXT_ENCODERS[model.family].index(component)]


def encoder_name(name: str, known: Container[str]) -> str | None:
    """The one of `known` that `name` means: transformers 5 dropped a prefix that files in the wild have. None: none."""
    candidates = (name, name.removeprefix(_ENCODER_PREFIX), _ENCODER_PREFIX + name)
    return next((candidate for candidate in candidates if candidate in known), None)


def _components(path: Path, family: Family, variant: str | None) -> dict[str, tuple[Path, ...]]:
    found = {name: stored.find(path / name, _DIFFUSERS_STEMS, variant) for name in ("unet", "vae")}
    found |= {name: stored.find(path / name, _ENCODER_STEMS, variant) for name in TEXT_ENCODERS[family]}
    if variant and not any(f".{variant}." in file.name for files in found.values() for file in files):
        raise BundleError(f"{path}: no weight file is of the variant {variant!r}")
    return found


def _own(names: Mapping[str, Tensor]) -> Iterator[str]:
    """Names of the checkpoint's own tensors: all but those of the indicator's processors."""
    return (name for name in names if ".processor." not in name)


def fill(module: nn.Module, files: tuple[Path, ...], dtype: torch.dtype | None) -> None:
    """Put one component's weights into `module`, which may be on the meta device; see `load_base`."""
    expected = module.state_dict()
    missing = set(_own(expected))
    found: dict[str, Tensor] = {}
    last = files[-1]
    for path, key, tensor in stored.tensors(files):
        name = _private(key, expected)
        if name is None:
            if key.endswith("position_ids"):  # a constant that older versions stored
                continue
            raise BundleError(f"{path}: tensor {key} is foreign; the config.json beside it has no such tensor")
        want = expected[name].shape
        # Attention of older VAEs was stored as 1x1 convolutions.
        fitting = tensor.reshape(want) if tensor.shape == (*want, 1, 1) else tensor
        if fitting.shape != want:
            raise BundleError(f"{path}: tensor {key} is {list(tensor.shape)}; config.json says {list(want)}")
        if not torch.isfinite(fitting).all():
            raise BundleError(f"{path}: tensor {key} has non-finite values")
        found[name] = fitting if dtype is None else fitting.to(dtype)
        if not torch.isfinite(found[name]).all():
            raise BundleError(f"{path}: tensor {key} has values beyond the range of {dtype}")
        missing.discard(name)
        last = path
    if missing:
        raise BundleError(f"{last}: tensor {min(missing)} is missing; the config.json beside it needs it")
    module.load_state_dict(found, strict=False, assign=True)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta and name.endswith("position_ids"):
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False)


# Attention in VAEs from before diffusers 0.18.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ENCODER_PREFIX = "text_model."


def _private(key: str, expected: Mapping[str, Tensor]) -> str | None:
    """The name in the module for a stored `key`, or None."""
    *path, kind = key.split(".")
    old = ".".join([*path[:-1], _OLD_NAMES.get(path[-1], path[-1]), kind]) if path else key
    return old if old in expected else encoder_name(key, expected)


def _public(component: str, name: str) -> str:
    """The name to store a module's tensor under: the one that every version of transformers reads."""
    prefixed = component not in TEXT_ENCODERS[Family.SDXL] or name.startswith((_ENCODER_PREFIX, "text_projection."))
    return name if prefixed else _ENCODER_PREFIX + name


def _digest(path: Path, family: Family, variant: str | None) -> str:
    """sha256 over names and contents of the files that decide what the checkpoint does."""
    components = _components(path, family, variant)
    files = {path / MODEL_INDEX, path / "scheduler" / "scheduler_config.json"}
    files |= {path / name / "config.json" for name in components}
    files |= {file for own in components.values() for file in own}
    files |= {file for name in TOKENIZERS[family] for file in _tokenizer_files(path / name)}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def _tokenizer_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder / name for name in _TOKENIZER_FILES if (folder / name).is_file())


def read_tokenizer(folder: Path) -> Any:
    """Raises BundleError naming `folder` where transformers can't read it."""
    try:
        return CLIPTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BundleError(f"{folder}: not a tokenizer that transformers reads ({error})") from error


def prompt_length(tokenizer: Any, encoder: Mapping[str, Any]) -> int:
    """Tokens that every prompt is padded or cut to, for the text encoder with the arguments `encoder`."""
    return min(int(tokenizer.model_max_length), int(encoder.get("max_position_embeddings", _CLIP_LENGTH)))
