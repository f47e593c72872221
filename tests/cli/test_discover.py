"""`ddm-rt discover` from images to codes: found, accepted, trained with."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddm_rt.cli import main
from ddm_rt.presets import resolve
from ddm_rt.workflows.discover import discover

FEW = {"features.steps": 2, "codes.micro_codes": 8, "codes.bootstraps": 2, "data.image_size": 16}


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 40 standing and lying bars, 3:1."""
    folder = tmp_path_factory.mktemp("bars")
    rng = np.random.default_rng(0)
    for i in range(40):
        image = rng.integers(0, 30, (16, 16)).astype(np.uint8)
        image[2:14, 6 + i % 2 : 10 + i % 2] = 255
        Image.fromarray(image.T if i % 4 == 0 else image).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def found(bars: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("found") / "splits"
    discover(str(bars), out, FEW)
    return out


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["ddm-rt", *arguments])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_the_page_shows_each_side_and_needs_no_other_file(found: Path) -> None:
    page = (found / "index.html").read_text("utf-8")
    factors = json.loads((found / "factors.json").read_text("utf-8"))["factors"]
    assert page.count("data:image/png;base64,") == sum(len(factor["sizes"]) for factor in factors)
    assert page.count('<fieldset class="choice"') == len(factors)
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert "Nobody has confirmed" in page


def test_accepted_factors_are_what_a_run_balances(
    bars: Path,
    found: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from ddm_rt.train.run import train

    assert (
        run("discover", "--out", str(found), "--accept", "1", "--name", "1=bar:up,flat", monkeypatch=monkeypatch) == 0
    )
    assert "accepted 1: bar: up (" in capsys.readouterr().out
    unet = {"block_out_channels": [8, 8], "attention_head_dim": 4, "norm_num_groups": 4}
    fields = {"data.source": str(bars), "codes.source": str(found / "factors.json"), **FEW}
    fields |= {f"model.unet.{name}": value for name, value in unet.items()}
    train(resolve("digits", fields | {"train.steps": 2, "train.batch_size": 4}), tmp_path / "run")
    codes = json.loads((tmp_path / "run" / "codes.json").read_text("utf-8"))
    assert codes["factors"] == [{"name": "bar", "values": ["up", "flat"], "value_of": [0, 1]}]
    assert [leaf["share_in_top"] for leaf in codes["leaves"]] == [1, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--accept", "99"), "there is no candidate 99"),
        (("--accept", "1,x"), "--accept '1,x': expected numbers of candidates"),
        (("--accept", "1", "--name", "bar"), "--name 'bar': expected N=NAME:A,B"),
        (("--accept", "1", "--name", "1=bar:up"), "it needs a name, and a name for each of its sides"),
        (("--accept", "1", "--name", "1=code:up,flat"), "none of them code"),
        ((), "--data: missing"),
        (("--name", "1=bar:up,flat"), "--data: missing"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_and_leaves_the_file_as_it_was(
    found: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (found / "factors.json").read_bytes()
    assert run("discover", "--out", str(found), *arguments, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
    assert (found / "factors.json").read_bytes() == before


def test_features_that_are_not_those_of_the_images_are_refused(
    bars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "f.npy", np.zeros((3, 4), np.float32))
    arguments = ("--data", str(bars), "--image-size", "16", "--features", str(tmp_path / "f.npy"))
    assert run("discover", *arguments, "--out", str(tmp_path / "out"), monkeypatch=monkeypatch) == 2
    assert "expected floats [40, D]" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
