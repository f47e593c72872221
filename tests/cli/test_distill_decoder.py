"""A small decoder distilled from a VAE. The networks have random weights: what is tested is that it learns and resumes,
not how good its images are.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ddm_rt.config import RunConfig
from ddm_rt.errors import DdmError
from ddm_rt.export.decoder import read_decoder
from ddm_rt.model.assemble import read_file
from ddm_rt.train.distill import decoder
from ddm_rt.train.distill.decoder import DecoderConfig, distill_decoder

Run = Callable[..., Any]
SMALL = {"width": 8, "blocks": 1, "crop": 16, "batch_size": 2}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        ramp = np.add.outer(np.arange(64) * (i % 5), np.arange(64) * (i % 3)) % 256
        Image.fromarray(np.stack([ramp, ramp.T, 255 - ramp], -1).astype(np.uint8)).save(folder / f"{i}.png")
    return str(folder)


@pytest.fixture(scope="module")
def run(latent_runs: Mapping[str, Path]) -> Path:
    return latent_runs["sd15"]


def test_it_comes_nearer_to_the_vae_and_export_takes_it(ddm_rt: Run, run: Path, images: str, tmp_path: Path) -> None:
    before = distill_decoder(run, tmp_path / "one step", DecoderConfig(steps=1, **SMALL), images)
    words = ("--width", 8, "--blocks", 1, "--crop", 16, "--batch-size", 2)
    out = tmp_path / "small"
    said = ddm_rt("distill-decoder", run, "--data", images, "--steps", 60, *words, "--log-steps", "--out", out)
    assert said.code == 0, said.err
    *_, step, place, error = said.out.splitlines()
    assert step.startswith("step 60 of 60 loss ")
    assert place == f"decoder: {out}"
    assert error.startswith("from the VAE on 2 images it never saw: ")
    found = json.loads((out / "distilled.json").read_bytes())
    assert (found["images"], found["held_out"]) == (24, 2)
    assert found["mean_abs_grey_levels"] < 0.9 * before.mean_abs_grey_levels
    assert not (out / decoder.CHECKPOINT).exists()
    decode = read_decoder(out, read_file(RunConfig, run / "config.json").model)
    with torch.inference_mode():
        assert decode(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 16, 16)
    times = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert ddm_rt("distill-decoder", run, "--data", images, "--steps", 60, *words, "--out", out).code == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.iterdir()}, "the same command changes nothing"


def test_one_that_was_stopped_ends_in_the_same_bits(
    run: Path, images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DecoderConfig(steps=6, **SMALL)
    distill_decoder(run, tmp_path / "whole", config, images)
    monkeypatch.setattr(decoder, "_EVERY", 2)

    def killed(step: int, of: int, figures: Mapping[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_decoder(run, tmp_path / "parts", config, images, killed)
    assert (tmp_path / "parts" / decoder.CHECKPOINT).is_file()
    distill_decoder(run, tmp_path / "parts", config, images)
    whole, parts = (load_file(tmp_path / name / decoder.WEIGHTS) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_bad_input_is_named_and_nothing_is_written(run: Path, tiny_run: Path, images: str, tmp_path: Path) -> None:
    config = DecoderConfig(steps=1, **SMALL)
    with pytest.raises(DdmError, match="trained on pixels, without a VAE"):
        distill_decoder(tiny_run, tmp_path / "out", config, images)
    with pytest.raises(DdmError, match="data 'none': no such folder"):
        distill_decoder(run, tmp_path / "out", config)
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "broken"
    shutil.copytree(images, broken)
    (broken / "7.png").write_bytes(b"no image")
    with pytest.raises(DdmError, match=r"7\.png"):
        distill_decoder(run, tmp_path / "out", config, str(broken))
    assert not (tmp_path / "out").exists()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes.txt").write_text("mine")
    with pytest.raises(DdmError, match="exists and is not a decoder of this command"):
        distill_decoder(run, tmp_path / "taken", config, images)
    distill_decoder(run, tmp_path / "out", config, images)
    with pytest.raises(DdmError, match="was begun with other settings"):
        distill_decoder(run, tmp_path / "out", DecoderConfig(steps=2, **SMALL), images)
