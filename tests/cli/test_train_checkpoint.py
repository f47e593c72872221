"""`ddm-rt train --base`: options reach the configuration, mistakes are one line, a run is made."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.train import run as run_module

Run = Callable[..., Any]


def test_every_option_reaches_its_field(
    ddm_rt: Run, checkpoints: Mapping[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[RunConfig, int | None]] = []

    def record(config: RunConfig, out: Path, *, progress: object, grid_every: int | None) -> None:
        seen.append((config, grid_every))
        (out / "codes.json").write_text('{"origin": "none"}')

    monkeypatch.setattr(run_module, "train", record)
    options = {
        "--prompt": ("data.prompt", "a bar"),
        "--lora-rank": ("lora.rank", 4),
        "--lora-alpha": ("lora.alpha", 8.0),
        "--lora-targets": ("lora.targets", ["to_q", "to_out.0"]),
        "--precision": ("train.precision", "bf16"),
        "--accumulate": ("train.accumulate", 3),
        "--image-size": ("data.image_size", 32),
        "--features": ("features.encoder", "clip"),
    }
    given = {**options, "--lora-targets": ("", "to_q, to_out.0")}
    line = [part for option, (_, value) in given.items() for part in (option, value)]
    flags = ("--train-text-encoder", "--gradient-checkpointing", "--grid-every", 7)
    place = ("train", "--base", checkpoints["sd15"], "--data", folder, "--out", tmp_path)
    said = ddm_rt(*place, *line, *flags, "--set", "sampling.num_steps=9")
    assert said.code == 0, said.err
    config, grid_every = seen[0]
    tree = config.model_dump(mode="json")
    for field, value in options.values():
        section, name = field.split(".")
        assert tree[section][name] == value, field
    assert config.lora.text_encoder
    assert config.train.gradient_checkpointing
    assert grid_every == 7
    # What the checkpoint says, and the preset for checkpoints.
    assert (config.preset, config.model.family, config.data.channels) == ("checkpoint", "sd", 3)
    assert config.base is not None
    assert config.base.path == checkpoints["sd15"].resolve()
    assert (config.sampling.num_steps, config.sampling.guidance_scale) == (9, 7.5)
    assert config.schedule.beta_schedule == "scaled_linear"


REFUSED = {
    "no data": (("--base", "sd15"), "--data: missing; with --base it is a folder of images"),
    "no such checkpoint": (("--base", "nowhere", "--data", "folder"), "nowhere: no such directory"),
    "no prompts": (("--base", "sd15", "--data", "folder"), "its images have no prompts; give --prompt"),
    "targets that match nothing": (
        ("--base", "sd15", "--data", "folder", "--prompt", "a bar", "--lora-targets", "nothing"),
        "lora.targets: 'nothing' matches no linear layer of the UNet",
    ),
    "a rank without a checkpoint": (("--data", "folder", "--lora-rank", 2), "needs a checkpoint (--base)"),
    "a variant without a checkpoint": (("--data", "folder", "--variant", "fp16"), "--variant needs --base"),
    "another variant": (
        ("--base", "sd15", "--data", "folder", "--variant", "fp16"),
        "no weight file is of the variant",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing(
    case: str, ddm_rt: Run, checkpoints: Mapping[str, Path], folder: Path, tmp_path: Path
) -> None:
    line, expected = REFUSED[case]
    places = {"sd15": checkpoints["sd15"], "folder": folder, "nowhere": tmp_path / "nowhere"}
    said = ddm_rt("train", *(places.get(str(part), part) for part in line), "--out", tmp_path / "run")
    assert expected in said.refusal()
    assert not (tmp_path / "run").exists()


def test_a_run_is_made_and_the_same_command_changes_nothing(
    ddm_rt: Run, checkpoints: Mapping[str, Path], folder: Path, tmp_path: Path
) -> None:
    line = ("train", "--base", checkpoints["sd21"], "--data", folder, "--prompt", "a bar", "--out", tmp_path / "run")
    line += ("--indicator", "labels", "--steps", 2, "--log-steps", "--set", "train.accumulate=1")
    said = ddm_rt(*line)
    assert said.code == 0, said.err
    lines = said.out.splitlines()
    assert [line.split(" loss")[0] for line in lines if line.startswith("step ")] == ["step 2 of 2"]
    assert "encoding 40 of 40" in said.out
    assert lines[-1] == f"run: {tmp_path / 'run'}"
    config = parse_json(RunConfig, (tmp_path / "run" / "config.json").read_bytes(), "config.json")
    assert config.schedule.prediction_type == "v_prediction"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert ddm_rt(*line).code == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
