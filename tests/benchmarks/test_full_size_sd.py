"""Import, export and sampling of the published architectures, at a hundredth of their size and less."""

import subprocess
import sys
from pathlib import Path

import full_size_sd
import full_size_sd_checkpoint as checkpoints
import numpy as np
import pytest
import torch
from PIL import Image
from store import load

from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.folder import read_checkpoint

SCRIPT = Path(full_size_sd.__file__)
# Millions of parameters, as published.
PUBLISHED = {
    "sd15": {"unet": 859.5, "vae": 83.7, "text_encoder": 123.1},
    "sdxl": {"unet": 2567.5, "vae": 83.7, "text_encoder": 123.1, "text_encoder_2": 694.7},
}


def start(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("family", full_size_sd.FAMILIES)
def test_the_architectures_have_the_published_sizes(family: str) -> None:
    with torch.device("meta"):
        made = {name: make(1.0) for name, make in checkpoints.ARCHITECTURES[family].items() if name != "scheduler"}
    sizes = {name: round(sum(p.numel() for p in module.parameters()) / 1e6, 1) for name, module in made.items()}
    assert sizes == PUBLISHED[family]


@pytest.mark.parametrize("family", full_size_sd.FAMILIES)
def test_a_checkpoint_is_written_that_can_be_imported(family: str, tmp_path: Path) -> None:
    checkpoints.write(family, tmp_path / "checkpoint", 0.001, torch.float16)
    found = read_checkpoint(tmp_path / "checkpoint")
    assert found.image_size == {"sd15": 512, "sdxl": 1024}[family]
    assert len(found.tokenizers) == {"sd15": 1, "sdxl": 2}[family]
    facts = full_size_sd.facts(f"{family}.checkpoint", tmp_path / "checkpoint")
    assert facts["parameters"].keys() == PUBLISHED[family].keys()
    assert facts["bytes"] > 2 * sum(facts["parameters"].values())


@pytest.mark.slow  # about three minutes: two traces of a whole UNet
def test_a_hundredth_of_sd15_is_imported_exported_and_sampled(tmp_path: Path) -> None:
    line = ("--work", "work", "--families", "sd15", "--scale", "0.01")
    done = start(*line, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    record = load("full size SD", tmp_path / "work")
    assert record is not None
    steps = {row["step"]: row for row in record["rows"]}
    assert list(steps) == list(full_size_sd.chain("sd15", Path()))
    assert steps["sd15.sample fp16"]["image"] == [256, 256, 3]
    assert max(steps["sd15.export fp32"]["parity_max_abs_error"].values()) < 1e-4
    export, _, sample, of_sdxl = (bar["met"] for bar in record["bars"])  # seconds depend on what else the machine does
    assert (export, sample, of_sdxl) == (True, True, None)
    assert "| sd15, convert fp16 |" in (tmp_path / "work/full_size.md").read_text()
    assert not (tmp_path / "work/sd15").exists()

    again = start(*line, cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.count(": kept") == len(steps)


def test_a_scale_that_makes_no_network_is_refused(tmp_path: Path) -> None:
    done = start("--work", "work", "--scale", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert "--scale is 2; expected more than 0 and at most 1" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_flat_image_is_no_result(tmp_path: Path) -> None:
    for value in (np.arange(256, dtype=np.uint8).reshape(16, 16), np.zeros((16, 16), np.uint8)):
        Image.fromarray(value).save(tmp_path / "000000.png")
        if value.any():
            assert full_size_sd.facts("sd15.sample fp16", tmp_path)["grey_levels_std"] == 73.9
    with pytest.raises(DdmError, match="one flat colour"):
        full_size_sd.facts("sd15.sample fp16", tmp_path)
