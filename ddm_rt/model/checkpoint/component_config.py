"""The config.json files of a checkpoint's networks, checked against each other, as a `ModelConfig`."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig

from ddm_rt.config import Family, ModelConfig, parse
from ddm_rt.errors import BundleError
from ddm_rt.files import read

CONFIG = "config.json"
# Folders of the text encoders, in the order in which the UNet takes their outputs.
TEXT_ENCODERS: dict[Family, tuple[str, ...]] = {
    Family.SD: ("text_encoder",),
    Family.SDXL: ("text_encoder", "text_encoder_2"),
}
ENCODER_CLASSES = {"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}
# What other UNets and VAEs have and `LatentDDM` gives no input for, or leaves out.
_UNET_ONLY: dict[str, Any] = {
    "class_embed_type": None,
    "num_class_embeds": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "dual_cross_attention": False,
}
_VAE_ONLY: dict[str, Any] = {"latents_mean": None, "latents_std": None}
_ADDITION = {Family.SD: None, Family.SDXL: "text_time"}
_SIZE_NUMBERS = 6  # of SDXL's time_ids


def read_networks(path: Path, family: Family) -> ModelConfig:
    """The networks of the checkpoint at `path`: their arguments, each tried on the meta device.

    Raises BundleError naming the file and field that is malformed, not supported, or doesn't fit another network's.
    """
    unet = read_arguments(path / "unet", UNet2DConditionModel)
    vae = read_arguments(path / "vae", AutoencoderKL)
    encoders = tuple(_encoder_arguments(path / name) for name in TEXT_ENCODERS[family])
    _check_fields(unet, _UNET_ONLY | {"addition_embed_type": _ADDITION[family]}, path / "unet" / CONFIG)
    _check_fields(vae, _VAE_ONLY, path / "vae" / CONFIG)
    _check_fit(path, family, unet, vae, encoders)
    tree = {"family": family, "patch": _patch(vae, path), "unet": unet, "vae": vae, "text_encoders": encoders}
    return parse(ModelConfig, tree, path)


def image_size(model: ModelConfig, path: Path) -> int:
    """Pixels a side that the UNet of the checkpoint at `path` was made for."""
    size = model.unet["sample_size"]
    sides = size if isinstance(size, list | tuple) else [size]
    if not sides or any(type(side) is not int or side < 1 or side != sides[0] for side in sides):
        raise BundleError(f"{path / 'unet' / CONFIG}: field sample_size: {size!r:.80}; expected one positive number")
    return int(sides[0]) * model.patch


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BundleError where there is none."""
    content = read(path, "expected a JSON object", BundleError)
    try:
        tree = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: not JSON ({error})") from error
    if not isinstance(tree, dict):
        raise BundleError(f"{path}: expected a JSON object")
    return tree


def read_arguments(folder: Path, kind: type) -> dict[str, Any]:
    """Arguments of `kind` in the folder's config.json, defaults filled in, as diffusers reads them."""
    where = folder / CONFIG
    tree = read_json(where)
    if tree.get("_class_name", kind.__name__) != kind.__name__:
        raise BundleError(
            f"{where}: field _class_name: {tree['_class_name']!r:.80} is not supported; expected {kind.__name__}"
        )
    parameters = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    known = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    arguments = {key: tree.get(key, default) for key, default in known.items()}
    _try(lambda: kind(**arguments), kind.__name__, where)
    return arguments


def _encoder_arguments(folder: Path) -> dict[str, Any]:
    where = folder / CONFIG
    tree = read_json(where)
    expected = ENCODER_CLASSES[folder.name]
    if (tree.get("architectures") or [expected]) != [expected]:
        raise BundleError(
            f"{where}: field architectures: {tree['architectures']!r:.80} is not supported; expected ['{expected}']"
        )
    # The dtype is left out: with it, transformers makes parts of the module in it.
    defaults = CLIPTextConfig().to_dict()
    known = defaults.keys() - {"architectures", "dtype", "torch_dtype", "transformers_version"}
    given = {key: tree[key] for key in sorted(known & tree.keys()) if not key.startswith("_")}
    sizes = {key: given.get(key, defaults[key]) for key in ("hidden_size", "projection_dim")}
    arguments = given | sizes | {"architectures": [expected]}
    _try(lambda: getattr(transformers, expected)(CLIPTextConfig(**arguments)), expected, where)
    return arguments


def _try(build: Any, name: str, where: Path) -> None:
    try:
        with torch.device("meta"):
            build()
    except Exception as error:  # whatever a constructor does with arguments that it doesn't check
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BundleError(f"{where}: makes no {name} ({first})") from error


def _check_fields(arguments: dict[str, Any], only: dict[str, Any], where: Path) -> None:
    for field, value in only.items():
        if arguments[field] != value:
            raise BundleError(
                f"{where}: field {field}: {arguments[field]!r:.80} is not supported here; expected {value!r}"
            )


def _check_fit(
    path: Path, family: Family, unet: dict[str, Any], vae: dict[str, Any], encoders: tuple[dict[str, Any], ...]
) -> None:
    where = path / "unet" / CONFIG
    latent = vae["latent_channels"]
    if unet["in_channels"] != latent or unet["out_channels"] != latent:
        raise BundleError(
            f"{where}: field in_channels: {unet['in_channels']} (out_channels: {unet['out_channels']}); expected the "
            f"VAE's latent_channels, {latent}; UNets for inpainting or editing are not supported"
        )
    hidden = [int(encoder["hidden_size"]) for encoder in encoders]
    if unet["cross_attention_dim"] != sum(hidden):
        raise BundleError(
            f"{where}: field cross_attention_dim: {unet['cross_attention_dim']!r:.80}; the text encoders' hidden_size "
            f"gives {' + '.join(map(str, hidden))}"
        )
    if family is Family.SDXL:
        pooled = int(encoders[-1]["projection_dim"])
        want = _SIZE_NUMBERS * int(unet["addition_time_embed_dim"]) + pooled
        if unet["projection_class_embeddings_input_dim"] != want:
            raise BundleError(
                f"{where}: field projection_class_embeddings_input_dim: "
                f"{unet['projection_class_embeddings_input_dim']}; expected {_SIZE_NUMBERS} x addition_time_embed_dim "
                f"+ text_encoder_2's projection_dim = {want}"
            )


def _patch(vae: dict[str, Any], path: Path) -> int:
    """Pixels a side to a latent's: each level of the VAE but the last halves the image."""
    levels = vae["block_out_channels"]
    if not isinstance(levels, list | tuple):
        raise BundleError(
            f"{path / 'vae' / CONFIG}: field block_out_channels: {levels!r:.80}; expected a list, one entry per level"
        )
    return int(2 ** (len(levels) - 1))
