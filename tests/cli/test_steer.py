"""`ddm-rt steer`: from a plain run to one with codes, and mistakes as one line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from pictures import KINDS, drawings

from ddm_rt.config import RunConfig
from ddm_rt.model.assemble import read_file
from ddm_rt.runtime import Codes

Run = Callable[..., Any]


@pytest.fixture
def codes(tmp_path: Path) -> Path:
    path = tmp_path / "codes.json"
    path.write_text(json.dumps({"code": [KINDS.index(kind) for kind in drawings(40)[1]]}))
    return path


def test_a_plain_run_gets_codes(ddm_rt: Run, plain_x0_run: Path, codes: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    said = ddm_rt("steer", plain_x0_run, "--factors", codes, "--strength", 3, "--from", 100, "--out", out)
    assert said.code == 0, said.err
    assert said.out.splitlines() == [
        "codes: 2, 2 of which get equal shares (codes are not groups)",
        "steers: prediction, 1 place, strength 3",
        f"run: {out}",
    ]
    config = read_file(RunConfig, out / "config.json")
    assert config.steering is not None
    assert (config.steering.strength, config.steering.steered_from, config.model.steered_from) == (3.0, 100.0, 100.0)
    assert config.codes.source == codes


def test_few_labels_define_the_codes(ddm_rt: Run, plain_x0_run: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    rows = [f"{i:03d}.png,{kind}" for i, kind in enumerate(drawings(40)[1][:16])]
    labels.write_text("\n".join(["image,label", *rows]))
    out = tmp_path / "run"
    few = ("--set", "features.steps=2", "--set", "features.batch_size=16")
    said = ddm_rt("steer", plain_x0_run, "--labels", labels, *few, "--out", out)
    assert said.code == 0, said.err
    found = read_file(Codes, out / "codes.json")
    assert (found.origin, found.rule["classes"]) == ("probe", list(KINDS))


REFUSED = {
    "an unknown site": (("plain", "--site", "heads"), "--site 'heads': expected one of: attention, prediction"),
    "attention without text": (("plain", "--site", "attention"), "takes no text, so its cross-attention gives"),
    "prompts without text": (("plain", "--contrast", "a|b"), "takes no text; --contrast needs a model that does"),
    "one prompt": (("sd15", "--contrast", "a man"), "--contrast 'a man': expected two or more prompts"),
    "a prompt twice": (("sd15", "--contrast", "a|a"), "expected two or more different prompts"),
    "prompts and images": (("sd15", "--contrast", "a|b", "--data", "x"), "leave out data.source"),
    "no images": (("sd15",), "--data: missing; expected the images that codes are found in, or --contrast"),
    "a checkpoint's prediction": (("sd15", "--site", "prediction", "--data", "x"), "needs a model that predicts x0"),
    "a run with codes": (("coded",), "has codes already"),
    "a variant of a run": (("plain", "--variant", "fp16"), "--variant: "),
    "nothing": (("nowhere",), "expected a finished run, or a checkpoint folder"),
    "other images": (("plain", "--codes", "short"), "field code has 3 entries for 40 images"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_one_line_and_leaves_nothing(
    case: str, ddm_rt: Run, checkpoints: Mapping[str, Path], plain_x0_run: Path, tiny_run: Path, tmp_path: Path
) -> None:
    short = tmp_path / "short.json"
    short.write_text(json.dumps({"code": [0, 1, 0]}))
    places = {"plain": plain_x0_run, "coded": tiny_run, "sd15": checkpoints["sd15"], "nowhere": tmp_path / "nowhere"}
    line, expected = REFUSED[case]
    said = ddm_rt("steer", *((places | {"short": short}).get(part, part) for part in line), "--out", tmp_path / "run")
    assert expected in said.refusal()
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_there_is_left_alone(ddm_rt: Run, plain_x0_run: Path, codes: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    said = ddm_rt("steer", plain_x0_run, "--codes", codes, "--out", tmp_path / "run")
    assert "run" in said.refusal()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mine"]
