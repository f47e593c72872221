"""A small distilled decoder in the VAE's place: what diffusers decodes, and folders that don't fit."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from tolerances import EXPORT_FP32_ABS

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision, RunConfig, parse_json
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export.decoder import read_decoder
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.run import export_run
from ddm_rt.graph_files import open_session

WEIGHTS = "diffusion_pytorch_model.safetensors"


def write_decoder(folder: Path, **arguments: Any) -> Path:
    """A TAESD in diffusers' layout with few channels and random weights."""
    sizes: dict[str, Any] = {
        **dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), (8,) * 4),
        **dict.fromkeys(("num_encoder_blocks", "num_decoder_blocks"), (1,) * 4),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoencoderTiny(**sizes | arguments).save_pretrained(folder)
    return folder


@torch.inference_mode()
def test_it_decodes_as_in_diffusers(latent_runs: Mapping[str, Path], tmp_path: Path) -> None:
    folder, run = write_decoder(tmp_path / "taesd", scaling_factor=0.7), latent_runs["sd15"]
    decode = read_decoder(folder, parse_json(RunConfig, (run / "config.json").read_bytes(), run).model)
    x0 = 2 * torch.randn((3, 4, 5, 7), generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(decode(x0), decoded(folder, x0), rtol=0, atol=EXPORT_FP32_ABS)


def decoded(folder: Path, x0: torch.Tensor) -> torch.Tensor:
    """What diffusers decodes, as its pipelines call it."""
    tiny = AutoencoderTiny.from_pretrained(folder)
    return tiny.decode(x0 / tiny.config.scaling_factor, return_dict=False)[0]


@pytest.mark.slow(reason="another export")
@torch.inference_mode()
def test_its_graph_decodes_as_in_diffusers(
    latent_runs: Mapping[str, Path],
    exported_bundles: Mapping[str, Bundle],
    tmp_path: Path,
    known_graphs: Callable[..., None],
) -> None:
    folder = write_decoder(tmp_path / "taesd", scaling_factor=0.7)
    known_graphs(exported_bundles["sdxl"], fresh=("decoder",))
    bundle = export_run(latent_runs["sdxl"], tmp_path / "bundle", decoder=folder)
    x0 = 2 * torch.randn((3, 4, 5, 7), generator=torch.Generator().manual_seed(0))
    (image,) = open_session(bundle.graphs["decoder"]).run(None, {"x0": x0.numpy()})
    np.testing.assert_allclose(image, decoded(folder, x0), rtol=0, atol=EXPORT_FP32_ABS)
    provenance = bundle.index.provenance["decoder"]
    assert (provenance["class"], provenance["name"]) == ("AutoencoderTiny", "taesd")
    # The VAE's own would have stayed float32.
    half = convert(bundle, tmp_path / "fp16", Precision.FP16)
    assert half.index.files["decoder.onnx"] != bundle.index.files["decoder.onnx"]


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def spoil(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["decoder.layers.0.bias"][2] = float("nan")
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize(
    ("arguments", "damage", "message"),
    [
        ({"latent_channels": 16}, None, r"config\.json: field latent_channels: is 16; this checkpoint has 4"),
        ({"out_channels": 1}, None, r"config\.json: field out_channels: is 1; this checkpoint has 3"),
        (
            {"num_decoder_blocks": (1,) * 3, "decoder_block_out_channels": (8,) * 3},
            None,
            r"config\.json: field num_decoder_blocks: enlarges by 4; this checkpoint has 8",
        ),
        ({}, lambda folder: edit(folder, _class_name="AutoencoderKL"), r"field _class_name: 'AutoencoderKL' is not"),
        ({}, lambda folder: (folder / "config.json").unlink(), r"config\.json: cannot be read"),
        ({}, lambda folder: (folder / WEIGHTS).unlink(), r"no weights; expected diffusion_pytorch_model\.safetensors"),
        ({}, spoil, rf"{WEIGHTS}: tensor decoder\.layers\.0\.bias has non-finite values"),
    ],
)
def test_a_decoder_that_does_not_fit_is_named(
    latent_runs: Mapping[str, Path],
    tmp_path: Path,
    arguments: dict[str, Any],
    damage: Callable[[Path], None] | None,
    message: str,
) -> None:
    folder = write_decoder(tmp_path / "taesd", **arguments)
    if damage is not None:
        damage(folder)
    run = latent_runs["sd15"]
    config = parse_json(RunConfig, (run / "config.json").read_bytes(), run)
    with pytest.raises(BundleError, match=message):
        read_decoder(folder, config.model)


def test_a_run_of_pixels_has_no_vae_to_replace(tiny_run: Path, tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "taesd")
    with pytest.raises(DdmError, match="trained on pixels, without a VAE"):
        export_run(tiny_run, tmp_path / "out", decoder=folder)
    assert not (tmp_path / "out").exists()
