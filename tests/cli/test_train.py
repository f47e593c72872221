"""`ddm-rt train`: its options reach the configuration, and it resumes or refuses."""

import json
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.train import run as run_module

Run = Callable[..., Any]


def tiny(folder: Path, out: Path, *more: object) -> tuple[object, ...]:
    return ("train", "--preset", "tiny", "--data", folder, "--out", out, "--set", "features.steps=3", *more)


def test_every_option_reaches_its_field(ddm_rt: Run, folder: Path, tmp_path: Path, monkeypatch) -> None:
    seen: list[RunConfig] = []

    def record(config: RunConfig, out: Path, **rest: object) -> None:
        seen.append(config)
        (out / "codes.json").write_text('{"origin": "none"}')

    monkeypatch.setattr(run_module, "train", record)
    options = {
        "--indicator": ("train.indicator", "labels"),
        "--indicator-weight": ("train.indicator_weight", 0.25),
        "--top-codes": ("codes.top_codes", 3),
        "--micro-codes": ("codes.micro_codes", 6),
        "--codes": ("codes.source", "given.json"),
        "--features": ("features.encoder", "encoder.onnx"),
        "--image-size": ("data.image_size", 24),
        "--channels": ("data.channels", 3),
        "--steps": ("train.steps", 11),
        "--seed": ("train.seed", 12),
        "--threads": ("train.threads", 2),
    }
    line = [part for option, (_, value) in options.items() for part in (option, value)]
    said = ddm_rt("train", "--preset", "tiny", "--data", folder, "--out", tmp_path, *line)
    assert said.code == 0, said.err
    tree = seen[0].model_dump(mode="json")
    for field, value in options.values():
        section, name = field.split(".")
        assert tree[section][name] == value, field
    assert tree["data"]["source"] == str(folder)


def test_an_option_wins_over_set(ddm_rt: Run, folder: Path, tmp_path: Path) -> None:
    more = ("--set", "train.steps=9", "--steps", 2, "--indicator", "none")
    assert ddm_rt(*tiny(folder, tmp_path / "run", *more)).code == 0
    config = parse_json(RunConfig, (tmp_path / "run" / "config.json").read_bytes(), "config.json")
    assert config.train.steps == 2


@pytest.mark.parametrize("indicator", ["none", "labels"])
def test_modes_without_codes_show_none(ddm_rt: Run, folder: Path, tmp_path: Path, indicator: str) -> None:
    said = ddm_rt(*tiny(folder, tmp_path / "run", "--indicator", indicator, "--steps", 2))
    assert said.code == 0, said.err
    assert "modes found" not in said.out
    assert said.out == f"run: {tmp_path / 'run'}\n"


def test_log_lines_tell_every_tenth_step(ddm_rt: Run, folder: Path, tmp_path: Path) -> None:
    said = ddm_rt(*tiny(folder, tmp_path / "run", "--indicator", "none", "--steps", 12, "--log-steps"))
    lines = [line.split(" loss ")[0] for line in said.out.splitlines() if line.startswith("step ")]
    assert lines == ["step 10 of 12", "step 12 of 12"]


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_goes_on(
    ddm_rt: Run, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    from ddm_rt.train.loop import Trainer

    line = tiny(folder, tmp_path / "run", "--steps", 9)
    advance = Trainer.advance

    def press(trainer: Trainer) -> float:
        if trainer.step == 4:
            # In another thread the signal would end the whole process, and nobody would know which test it was.
            assert threading.current_thread() is threading.main_thread()
            signal.raise_signal(signal.SIGINT)
        return advance(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "advance", press)
        said = ddm_rt(*line)
    assert said.code == 130
    assert f"stopped at step 5; the same command resumes it from {tmp_path / 'run'}" in said.err
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    with safe_open(checkpoint, "pt") as file:
        assert file.metadata()["step"] == "5"
    assert ddm_rt(*line).code == 0

    straight = tiny(folder, tmp_path / "straight", "--steps", 9)
    assert ddm_rt(*straight).code == 0
    ends = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("run", "straight")]
    assert ends[0] == ends[1]


def test_another_configuration_is_refused_by_field(ddm_rt: Run, folder: Path, trained) -> None:
    run, _ = trained
    said = ddm_rt("train", "--preset", "tiny", "--data", folder, "--seed", 3, "--out", run)
    assert f"{run / 'config.json'}: field train.seed differs from this command" in said.refusal()


def test_the_provenance_is_whole_and_names_no_machine(trained, folder: Path) -> None:
    provenance = json.loads((trained[0] / "provenance.json").read_bytes())
    assert provenance["preset"] == "tiny"
    assert provenance["images"] == 40
    assert provenance["labels_in_source"] == {"across": 30, "down": 10}
    assert {"torch", "diffusers", "numpy"} <= provenance["versions"].keys()
    assert str(folder.parent) not in json.dumps(provenance)
