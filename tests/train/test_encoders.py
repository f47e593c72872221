"""Frozen encoders for code discovery: CLIP's vision model, alone, in a whole CLIP, or in a checkpoint."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tolerances import UNIT_ABS
from transformers import CLIPConfig, CLIPModel, CLIPVisionModelWithProjection

from ddm_rt.config import RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.train.checkpoint.prepare import own_image_encoder
from ddm_rt.train.codes.contrastive import contrastive_features
from ddm_rt.train.codes.encoders import encoder_features
from ddm_rt.train.run import train

TOWER: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP with random weights. Read-only."""
    folder = tmp_path_factory.mktemp("clip") / "clip"
    vision = TOWER | {"image_size": 32, "patch_size": 8, "projection_dim": 12}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=TOWER, projection_dim=12)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.float32]:
    return np.random.default_rng(0).uniform(-1, 1, (5, 3, 64, 64)).astype(np.float32)


def test_a_whole_clip_and_its_vision_model_give_the_same_unit_features(
    clip: Path, pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    CLIPVisionModelWithProjection.from_pretrained(clip).save_pretrained(tmp_path / "image_encoder")
    found = encoder_features([pixels[:2], pixels[2:]], tmp_path / "image_encoder")
    assert found.shape == (5, 12)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=UNIT_ABS)
    assert encoder_features([pixels], clip) == pytest.approx(found, abs=UNIT_ABS)


@pytest.mark.parametrize("text", ["{", '{"image_mean": [0.5, 0.5]}', '{"image_std": [0.5, 0.5, 0]}'])
def test_a_normalisation_that_is_none_is_named_and_a_sound_one_is_used(
    clip: Path, pixels: NDArray[np.float32], tmp_path: Path, text: str
) -> None:
    folder = shutil.copytree(clip, tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    file.write_text(text)
    with pytest.raises(DdmError, match=rf"features\.encoder .*{file.name}: field "):
        encoder_features([pixels], folder)
    file.write_text('{"image_mean": [0.1, 0.2, 0.3], "do_resize": true}')
    assert np.abs(encoder_features([pixels], folder) - encoder_features([pixels], clip)).max() > UNIT_ABS


def test_the_safety_checkers_deeper_names_are_understood(
    clip: Path, pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    folder = tmp_path / "safety_checker"
    folder.mkdir()
    (folder / "config.json").write_bytes((clip / "config.json").read_bytes())
    tensors = {
        f"vision_model.{name}" if name.startswith("vision_model.") else name: tensor
        for name, tensor in load_file(clip / "model.safetensors").items()
        if name.startswith(("vision_model.", "visual_projection."))
    }
    save_file(tensors | {"concept_embeds": torch.ones(17, 12)}, folder / "model.safetensors", {"format": "pt"})
    assert encoder_features([pixels], folder) == pytest.approx(encoder_features([pixels], clip), abs=UNIT_ABS)
    assert own_image_encoder(tmp_path) == folder


def test_grey_images_are_taken_for_coloured_ones(clip: Path, pixels: NDArray[np.float32]) -> None:
    grey = pixels[:, :1]
    wanted = encoder_features([np.repeat(grey, 3, axis=1)], clip)
    assert encoder_features([grey], clip) == pytest.approx(wanted, abs=UNIT_ABS)


def test_a_folder_with_something_else_is_named(
    clip: Path, checkpoints: Mapping[str, Path], pixels: NDArray[np.float32], tmp_path: Path
) -> None:
    for folder in (tmp_path, checkpoints["sd15"] / "unet", checkpoints["sd15"] / "text_encoder"):
        with pytest.raises(DdmError, match=r"config\.json: field model_type: expected one of clip, clip_vision_model"):
            encoder_features([pixels], folder)
    (tmp_path / "config.json").write_bytes((clip / "config.json").read_bytes())
    with pytest.raises(DdmError, match="not a CLIP vision model that transformers reads"):
        encoder_features([pixels], tmp_path)
    save_file({"logit_scale": torch.ones(())}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DdmError, match=r"not a CLIP vision model: tensor .* is missing"):
        encoder_features([pixels], tmp_path)


def test_codes_of_a_checkpoint_come_from_its_own_image_encoder(
    clip: Path,
    adapting: Callable[..., RunConfig],
    checkpoints: Mapping[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import shutil

    from ddm_rt.train.checkpoint.prepare import fields
    from ddm_rt.train.codes import classes

    def never(*arguments: object) -> None:
        raise AssertionError("features were learned")

    monkeypatch.setattr(classes, contrastive_features.__name__, never)
    base = shutil.copytree(checkpoints["sd15"], tmp_path / "base")
    shutil.copytree(clip, base / "image_encoder")
    config = adapting("sd15", {"base": fields(base)["base"], "train.steps": 1})
    run = train(config, tmp_path / "run")
    assert '"image_encoder": "image_encoder"' in (run / "provenance.json").read_text()
