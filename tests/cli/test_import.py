"""`ddm-rt import`: what it says, and that a mistake is one line, exit code 2 and nothing half-written."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import adapters
import pytest
from safetensors.torch import load_file

from ddm_rt.config import RunConfig, parse_json


@pytest.fixture
def base(checkpoints: Mapping[str, Path], tmp_path: Path) -> Path:
    """A copy of sd15's checkpoint to change."""
    return Path(shutil.copytree(checkpoints["sd15"], tmp_path / "base"))


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_checkpoint_with_an_adapter(ddm_rt, base: Path, tmp_path: Path) -> None:
    edit(base / "scheduler/scheduler_config.json", _class_name="PNDMScheduler", skip_prk_steps=True)
    adapter = adapters.write_peft(base, tmp_path / "adapter", encoders=("text_encoder",))
    said = ddm_rt("import", "--base", base, "--adapter", adapter, "--out", tmp_path / "run", "--dtype", "fp16")
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        f"run: {tmp_path / 'run'}",
        "sampler: ddim, the nearest to the checkpoint's PNDMScheduler; --sampler picks another",
        "merged layers: 20",
        "not in the checkpoint, left out: unet: query, unet: value",
    ]
    config = parse_json(RunConfig, (tmp_path / "run/config.json").read_bytes(), tmp_path / "run")
    assert config.preset == "imported"
    weights = load_file(tmp_path / "run/base/unet/diffusion_pytorch_model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float16"}


def test_a_plain_checkpoint_has_nothing_more_to_say(ddm_rt, base: Path, tmp_path: Path) -> None:
    said = ddm_rt("import", "--base", base, "--out", tmp_path / "run")
    assert (said.code, said.out) == (0, f"run: {tmp_path / 'run'}\n")


def test_a_long_list_of_layers_is_cut(ddm_rt, base: Path, tmp_path: Path) -> None:
    adapter = adapters.write_peft(base, tmp_path / "adapter")
    targets = ["to_q", "to_v", *(f"tower_{i:02}" for i in range(13))]
    edit(adapter / "unet/adapter_config.json", target_modules=targets)
    said = ddm_rt("import", "--base", base, "--adapter", adapter, "--out", tmp_path / "run")
    assert "unet: tower_09, and 3 more (provenance.json)\n" in said.out


def test_help_has_examples(ddm_rt) -> None:
    said = ddm_rt("import", "--help")
    assert said.code == 0
    for example in ("--base checkpoints/sd15 --out runs/plain", "--adapter ddm-adapter/", "--variant fp16"):
        assert f"ddm-rt import {example}" in " ".join(said.out.split()) or example in said.out


def spoil_adapter(base: Path, tmp_path: Path) -> tuple[object, ...]:
    adapter = adapters.write_peft(base, tmp_path / "adapter")
    edit(adapter / "unet/adapter_config.json", bias="all")
    return ("--adapter", adapter)


def pickled_adapter(base: Path, tmp_path: Path) -> tuple[object, ...]:
    return ("--adapter", adapters.write_pickle(tmp_path / "lora.bin", tmp_path / "ran"))


def truncate(base: Path, tmp_path: Path) -> tuple[object, ...]:
    path = base / "text_encoder/model.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    return ()


def occupy(base: Path, tmp_path: Path) -> tuple[object, ...]:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/mine.txt").touch()
    return ()


def flux(base: Path, tmp_path: Path) -> tuple[object, ...]:
    edit(base / "model_index.json", _class_name="FluxPipeline")
    return ()


def no_vae(base: Path, tmp_path: Path) -> tuple[object, ...]:
    shutil.rmtree(base / "vae")
    return ()


MISTAKES: dict[str, tuple[Callable[[Path, Path], tuple[object, ...]], str]] = {
    "a family": (flux, "model_index.json: field _class_name: 'FluxPipeline' is not supported"),
    "a component": (no_vae, "base/vae: missing; a StableDiffusionPipeline has unet, vae"),
    "a file": (truncate, "text_encoder/model.safetensors: not a readable safetensors file"),
    "an adapter": (spoil_adapter, "adapter_config.json: field bias: 'all' is not supported; expected 'none'"),
    "code in an adapter": (pickled_adapter, "lora.bin: not readable as weights alone"),
    "no adapter": (lambda base, tmp_path: ("--adapter", tmp_path / "nowhere"), "nowhere: no such adapter"),
    "a variant": (lambda base, tmp_path: ("--variant", "int3"), "no weight file is of the variant 'int3'"),
    "the place": (occupy, "exists and is not an empty directory; choose another --out"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake(ddm_rt, base: Path, tmp_path: Path, case: str) -> None:
    spoil, said = MISTAKES[case]
    more = spoil(base, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert said in ddm_rt("import", "--base", base, "--out", tmp_path / "run", *more).refusal()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
