"""`ddm-rt export --diffusers`: what it writes, and what it refuses."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from latent_runs import write_run
from safetensors.torch import load_file

from ddm_rt.bundle import Bundle
from ddm_rt.export.diffusers import INDICATOR


def test_a_run_without_codes_becomes_a_plain_checkpoint_in_half(
    ddm_rt, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    run = write_run(checkpoints["sd15"], tmp_path / "run")
    done = ddm_rt("export", run, "--precision", "fp16", "--diffusers", tmp_path / "out")
    assert done.code == 0, done.err
    assert f"diffusers pipeline: {tmp_path / 'out'}" in done.out
    assert not {INDICATOR, "pipeline.py", "README.md"} & {path.name for path in (tmp_path / "out").iterdir()}
    weights = load_file(tmp_path / "out/unet/diffusion_pytorch_model.safetensors")
    base = load_file(checkpoints["sd15"] / "unet/diffusion_pytorch_model.safetensors")
    assert weights.keys() == base.keys()
    assert all(torch.equal(weights[name], base[name].half()) for name in base)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--precision", "int8"), "precision is int8; a diffusers folder stores fp32, fp16, bf16"),
        (("--out", "bundle"), "--out: this option can't go with --diffusers, which writes no bundle"),
        (("--plugin",), "--plugin: this option can't go with --diffusers"),
    ],
)
def test_options_that_do_not_go_together(
    ddm_rt, latent_runs: Mapping[str, Path], tmp_path: Path, line: tuple[str, ...], said: str
) -> None:
    assert said in ddm_rt("export", latent_runs["sd15"], "--diffusers", tmp_path / "out", *line).refusal()
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_run_of_a_checkpoint(ddm_rt, tiny_run: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    sources = {
        tiny_run: "trained on pixels, without a base checkpoint",
        tiny_bundle.path: "is a bundle; a diffusers folder is made from the run",
        tmp_path / "none": "config.json: cannot be read (No such file or directory)",
    }
    for source, said in sources.items():
        assert said in ddm_rt("export", source, "--diffusers", tmp_path / "out").refusal()
    assert list(tmp_path.iterdir()) == []
    assert "--out: name a bundle directory" in ddm_rt("export", tiny_run).refusal()
