"""A small distilled decoder in the place of a VAE's: diffusers' AutoencoderTiny, as TAESD is published."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from ddm_rt.config import ModelConfig
from ddm_rt.errors import BundleError
from ddm_rt.files import sha256
from ddm_rt.model.checkpoint import stored
from ddm_rt.model.checkpoint.component_config import read_arguments
from ddm_rt.model.checkpoint.folder import fill


class TinyDecoder(nn.Module):
    """Latents [B,C,H,W] -> images [B,3,H·p,W·p], nominally in [-1,1], as diffusers' pipelines call it."""

    def __init__(self, tiny: AutoencoderTiny) -> None:
        super().__init__()
        self.decoder, self.scaling_factor = tiny.decoder, float(tiny.config.scaling_factor)

    def forward(self, x0: Tensor) -> Tensor:
        image: Tensor = self.decoder(x0 / self.scaling_factor)
        return image


def read_decoder(folder: Path, model: ModelConfig) -> TinyDecoder:
    """The decoder of the AutoencoderTiny in `folder` (config.json and weights), float32, for latents of `model`.

    Raises BundleError naming the file and field of another class, one that doesn't fit the model's latents, or of
    damaged weights.
    """
    arguments = read_arguments(folder, AutoencoderTiny)
    factor = int(arguments["upsampling_scaling_factor"]) ** (len(arguments["num_decoder_blocks"]) - 1)
    for field, found, wanted in (
        ("latent_channels", arguments["latent_channels"], int(model.unet["in_channels"])),
        ("out_channels", arguments["out_channels"], 3),
        ("num_decoder_blocks", factor, model.patch),
    ):
        if found != wanted:
            what = "enlarges by" if field == "num_decoder_blocks" else "is"
            raise BundleError(f"{folder / 'config.json'}: field {field}: {what} {found}; this checkpoint has {wanted}")
    with torch.device("meta"):
        tiny = AutoencoderTiny(**arguments)
    fill(tiny, _files(folder), torch.float32)
    return TinyDecoder(tiny).eval().requires_grad_(False)


def provenance(folder: Path) -> dict[str, Any]:
    """Which decoder lies in `folder`: nothing of where that is."""
    weights = [path for path in _files(folder) if path.suffix != ".json"]
    return {"class": "AutoencoderTiny", "name": folder.resolve().name, "sha256": [sha256(path) for path in weights]}


def _files(folder: Path) -> tuple[Path, ...]:
    return stored.find(folder, ("diffusion_pytorch_model",), None)
