"""`ddm-rt demo`: refuses what it can't show, never passes old models for new ones, and runs through."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.presets import resolve
from ddm_rt.workflows import demo


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("--data", "digits:3"), "the demo takes two classes"),
        (("--data", "digits"), "the demo takes two classes"),
        (("--data", "digits:3,9@4:1"), "classes must be distinct"),
        (("--data", "digits:3,8@4000:1"), "can't be had"),
        (("--data", "nowhere"), "no such folder"),
        (("--steps", 0), "train.steps"),
        (("--steps", -4), "train.steps"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_refused_before_anything_runs(ddm_rt, line: tuple[Any, ...], said: str, tmp_path: Path) -> None:
    assert said in ddm_rt("demo", *line, "--out", tmp_path / "demo").refusal()
    assert not (tmp_path / "demo").exists()


def test_models_of_another_budget_do_not_pass_for_this_one_s(ddm_rt, tmp_path: Path) -> None:
    config = resolve(demo.PRESET, {"train.steps": 5, "train.indicator": "none", "data.source": "digits:3,8@4:1"})
    run = tmp_path / "vanilla" / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text(config.model_dump_json())
    (run / "weights.safetensors").write_bytes(b"")
    said = ddm_rt("demo", "--steps", 6, "--out", tmp_path).refusal()
    assert f"{run / 'config.json'}: made with other settings" in said


@pytest.fixture
def configs() -> dict[str, RunConfig]:
    return {
        name: resolve(demo.PRESET, {"data.source": "digits:3,8@4:1", "train.steps": 2} | fields)
        for name, (_, fields) in demo.METHODS.items()
    }


class Ended:
    """A process that is over; None: that runs."""

    def __init__(self, returncode: int | None) -> None:
        self.returncode = returncode

    def poll(self) -> int | None:
        return self.returncode

    def terminate(self) -> None:
        assert self.returncode is None, "it has ended already"


def test_a_training_that_fails_is_named_with_its_log(
    configs: dict[str, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(folder: Path, config: RunConfig, fields: dict[str, Any]) -> Ended:
        folder.mkdir(parents=True)
        (folder / "train.log").write_text("step 10 of 20 loss 1\nerror: the disk is full\n")
        return Ended(2)

    monkeypatch.setattr(demo, "_start", start)
    monkeypatch.setattr(demo, "_workers", lambda: 1)
    with pytest.raises(demo.DdmError, match=r"training ours failed: error: the disk is full .*train\.log"):
        list(demo._trained(tmp_path, configs, lambda name: lambda done, total: None))


def test_each_model_is_trained_once_and_finished_ones_are_kept(
    configs: dict[str, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(folder: Path, config: RunConfig, fields: dict[str, Any]) -> Ended:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.log").write_text("")
        started.append(folder.name)
        return Ended(0)

    (tmp_path / "paper" / "run").mkdir(parents=True)
    (tmp_path / "paper" / "run" / "weights.safetensors").write_bytes(b"")
    monkeypatch.setattr(demo, "_start", start)
    monkeypatch.setattr(demo.time, "sleep", lambda seconds: None)
    names = list(demo._trained(tmp_path, configs, lambda name: lambda done, total: None))
    assert names == ["paper", "ours", "vanilla"]
    assert sorted(started) == ["ours", "vanilla"]


def test_the_next_training_runs_while_the_caller_works_on_a_finished_one(
    configs: dict[str, RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def start(folder: Path, config: RunConfig, fields: dict[str, Any]) -> Ended:
        folder.mkdir(parents=True)
        (folder / "train.log").write_text("")
        started.append(folder.name)
        return Ended(0 if folder.name == "ours" else None)

    monkeypatch.setattr(demo, "_start", start)
    monkeypatch.setattr(demo, "_workers", lambda: 1)
    monkeypatch.setattr(demo.time, "sleep", lambda seconds: None)
    trained = demo._trained(tmp_path, configs, lambda name: lambda done, total: None)
    assert next(trained) == "ours"
    assert started == ["ours", "vanilla"]


def test_the_command_line_of_a_training_gives_the_configuration_that_was_checked(
    configs: dict[str, RunConfig], ddm_rt: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `_start` runs, run here with the training itself left out: the demo's check of old runs rests on it."""
    lines: list[list[str]] = []
    monkeypatch.setattr(demo.subprocess, "Popen", lambda command, **rest: lines.append(command))

    def record(config: RunConfig, out: Path, **rest: object) -> None:
        out.mkdir(parents=True)
        (out / "config.json").write_text(config.model_dump_json())
        (out / "codes.json").write_text('{"origin": "none"}')

    monkeypatch.setattr("ddm_rt.train.run.train", record)
    for name, (_, fields) in demo.METHODS.items():
        demo._start(tmp_path / name, configs[name], fields)
        assert lines[-1][1:3] == ["-m", "ddm_rt.cli"]
        assert ddm_rt(*lines[-1][3:]).code == 0
        path = tmp_path / name / "run" / "config.json"
        assert parse_json(RunConfig, path.read_bytes(), path) == configs[name]
        demo._check_same(path, configs[name])


@pytest.mark.parametrize(
    ("text", "step"), [("", 0), ("features 30 of 40\n", 0), ("step 10 of 20 l\nstep 20 of 20\n", 20)]
)
def test_the_bar_follows_the_log(tmp_path: Path, text: str, step: int) -> None:
    (tmp_path / "train.log").write_text(text)
    assert demo._step(tmp_path / "train.log") == step


@pytest.mark.slow(reason="trains, exports, samples and judges three models")
def test_the_demo_runs_through_and_resumes(ddm_rt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "N", 60)
    monkeypatch.setattr(demo, "MIN_PER_GROUP", 10)
    first = ddm_rt("demo", "--steps", 20, "--out", tmp_path / "demo")
    assert first.code == 0, first.err
    page = tmp_path / "demo" / "report" / "index.html"
    assert f"report: {page}\n" in first.out
    for label, _ in demo.METHODS.values():
        assert label.split(":")[0].split("(")[0] in page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=[\"']https?:", page.read_text(encoding="utf-8"))
    figures = json.loads((tmp_path / "demo" / "report" / "report.json").read_bytes())
    assert [method["name"] for method in figures["methods"]] == ["vanilla", "paper", "ours"]

    bundles = {path: path.stat().st_mtime_ns for path in (tmp_path / "demo").rglob("bundle.json")}
    assert len(bundles) == 3
    assert ddm_rt("demo", "--steps", 20, "--out", tmp_path / "demo").code == 0
    assert {path: path.stat().st_mtime_ns for path in bundles} == bundles, "what is there is kept"
