"""Features of images from a frozen encoder that somebody else trained: an ONNX file, or CLIP's vision model."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, PositiveFloat
from torch.nn import functional as F

from ddm_rt.config import parse_open
from ddm_rt.errors import DdmError
from ddm_rt.quiet import quiet
from ddm_rt.train.distributed import CPU

Images = NDArray[np.float32]  # [B, C, H, W] in [-1, 1]
Features = NDArray[np.float32]  # [N, D]

_CLIP_TYPES = ("clip", "clip_vision_model")
# Stable Diffusion 1.x keeps one in its safety checker, a level deeper.
_NAMES = {r"^vision_model\.vision_model\.": "vision_model."}


class _Normalisation(BaseModel):
    """What the images of a CLIP are normalised with; by default those of the published ones."""

    image_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.26862954, 0.26130258, 0.27577711)


def encoder_features(batches: Iterable[Images], encoder: Path, device: torch.device = CPU) -> Features:
    """Unit features [N, D] of images in `batches`, all of one size.

    `encoder` is an ONNX file with one image input, or a folder with CLIP's vision model as transformers stores it,
    which gets the images at its own size and normalisation, on `device`. Raises DdmError when it can't be loaded, or
    doesn't give one finite vector for each image.
    """
    where = f"features.encoder {encoder}"
    if not encoder.exists():
        raise DdmError(f"{where}: no such file; expected an ONNX encoder, or a folder with CLIP's vision model")
    encode = _clip(encoder, where, device) if encoder.is_dir() else _onnx(encoder, where)
    parts = []
    for images in batches:
        found = encode(images).astype(np.float32)
        if not len(found) or len(found) != len(images):
            raise DdmError(f"{where}: gives {len(found)} vectors for {len(images)} images")
        parts.append(found.reshape(len(images), -1))
    features = np.concatenate(parts)
    if not np.isfinite(features).all():
        raise DdmError(f"{where}: its features are not finite")
    unit: Features = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return unit


def is_clip(folder: Path) -> bool:
    """Whether `folder` says that it holds a CLIP, whole or its vision model."""
    try:
        tree = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(tree, dict) and tree.get("model_type") in _CLIP_TYPES


def _onnx(encoder: Path, where: str) -> Callable[[Images], Features]:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(encoder), providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises nothing more exact
        raise DdmError(f"{where}: {error}") from error
    name = session.get_inputs()[0].name

    def encode(images: Images) -> Features:
        try:
            found: Features = session.run(None, {name: images})[0]
        except Exception as error:
            raise DdmError(f"{where}: {error}") from error
        return found

    return encode


def _clip(folder: Path, where: str, device: torch.device) -> Callable[[Images], Features]:
    import transformers

    if not is_clip(folder):
        raise DdmError(f"{where}: config.json: field model_type: expected one of {', '.join(_CLIP_TYPES)}")
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.disable_progress_bar()
    try:
        with quiet("transformers"):  # which tells of the text half that a whole CLIP has besides
            model, told = transformers.CLIPVisionModelWithProjection.from_pretrained(
                folder, local_files_only=True, output_loading_info=True, dtype=torch.float32, key_mapping=_NAMES
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise DdmError(f"{where}: not a CLIP vision model that transformers reads ({error})") from error
    finally:
        if bars:
            transformers.logging.enable_progress_bar()
    if missing := sorted(told["missing_keys"]):
        raise DdmError(f"{where}: not a CLIP vision model: tensor {missing[0]} is missing")
    model.eval().requires_grad_(False).to(device)
    side = int(model.config.image_size)
    normal = _normalisation(folder, where)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (normal.image_mean, normal.image_std))

    def encode(images: Images) -> Features:
        pixels = torch.from_numpy(images).to(device).expand(-1, 3, -1, -1)
        sized = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
        normalised = ((sized.clamp(-1, 1) + 1) / 2 - mean) / std
        found: Features = model(pixel_values=normalised).image_embeds.cpu().numpy()
        return found

    return encode


def _normalisation(folder: Path, where: str) -> _Normalisation:
    """That of the folder, or of the checkpoint that the folder is a part of."""
    files = (path / "preprocessor_config.json" for path in (folder, folder.parent / "feature_extractor"))
    file = next((file for file in files if file.is_file()), None)
    return _Normalisation() if file is None else parse_open(_Normalisation, file.read_bytes(), f"{where}: {file}")
