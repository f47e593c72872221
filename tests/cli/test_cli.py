"""Two commands from nothing, on drawings: train, export, sample, judge, evaluate; and how the command line behaves."""

import json
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import ddm_rt as package
from ddm_rt import workflows
from ddm_rt.bundle import Bundle
from ddm_rt.cli import options
from ddm_rt.errors import DdmError
from ddm_rt.runtime import Codes

COMMANDS = (
    *("train", "import", "distill", "export", "build", "upgrade", "calibrate", "sample", "train-judge", "evaluate"),
    *("discover", "steer", "export-judge", "card", "distill-decoder", "cache"),
    *("compare", "bench", "serve", "doctor", "demo", "version"),
)


def test_train_shows_what_it_found_and_claims_no_groups(trained) -> None:
    run, said = trained
    assert said.code == 0, said.err
    text = " ".join(said.out.split())
    assert "modes found in the data (codes are not groups)" in text
    codes = Codes.model_validate_json((run / "codes.json").read_bytes())
    assert "typical images" in text
    for leaf in codes.leaves:
        exemplars = " ".join(map(str, codes.exemplars[leaf.code][:3]))
        assert re.search(rf"│ {leaf.code} +│ {leaf.size} +│ {exemplars} +│", said.out)
    mean = sum(codes.stability_ari) / len(codes.stability_ari)
    assert f"stability: adjusted Rand index {mean:.3f} on average over 2 bootstrap samples" in text
    assert f"run: {run}\n" in said.out, "a path is never broken over lines"


def test_export_makes_a_checked_bundle(exported, bundle: Bundle, tiny_run: Path) -> None:
    path, said = exported
    assert said.code == 0, said.err
    assert f"bundle: {path}\n" in said.out
    assert bundle.bundle_id in said.out
    assert bundle.training.run.preset == "tiny"
    codes = Codes.model_validate_json((tiny_run / "codes.json").read_bytes())
    assert bundle.codes.leaves == codes.leaves
    assert bundle.training.discovery == codes.model_copy(update={"leaves": ()})
    assert not [name for name in bundle.index.files if name.endswith(".safetensors")], "it holds its weights once"


@pytest.mark.slow(reason="traces the run's graphs")
def test_a_trained_run_is_exported_and_sampled(ddm_rt, trained, tmp_path: Path) -> None:
    bundle, out = tmp_path / "bundle", tmp_path / "out"
    assert ddm_rt("export", trained[0], "--out", bundle).code == 0
    assert ddm_rt("sample", bundle, "-n", 4, "--out", out).code == 0
    codes = Codes.model_validate_json((trained[0] / "codes.json").read_bytes())
    assert Bundle.load(bundle).codes.leaves == codes.leaves
    assert len(list(out.glob("0*.png"))) == 4


def test_sample_writes_images_a_sheet_and_a_manifest(sampled, bundle: Bundle) -> None:
    out, said = sampled
    assert said.code == 0, said.err
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:05d}.png" for i in range(12)),
        "contact_sheet.png",
        "manifest.json",
    ]
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["bundle_id"] == bundle.bundle_id
    assert np.bincount([image["top_code"] for image in manifest["images"]]).tolist() == [6, 6]
    with Image.open(out / "00000.png") as image:
        assert image.size == (16, 16)
    assert f"look at: {out / 'contact_sheet.png'}\n" in said.out


def test_train_judge_learns_and_says_so(judge) -> None:
    path, said = judge
    assert said.code == 0, said.err
    accuracy = float(said.out.split("held-out accuracy: ")[1])
    metadata = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    counts = np.array(json.loads(metadata["confusion"]))
    assert json.loads(metadata["classes"]) == ["across", "down"]
    assert counts.sum() == 40
    assert accuracy == pytest.approx(np.trace(counts) / 40, abs=1e-4)
    assert accuracy > 0.9, "bars across and bars down are easily told apart"


def test_evaluate_takes_bundles_and_sampled_directories(
    ddm_rt: Callable, bundle: Bundle, sampled, judge, folder: Path, tmp_path: Path
) -> None:
    line = ("--judge", judge[0], "--groups", "across,down", "--reference", folder, "--training", folder)
    budget = ("-n", 16, "--min-per-group", 6)
    methods = (f"bundle={bundle.path}", f"images={sampled[0]}")
    for method in methods:  # their n differs, so each has its report
        name = method.split("=")[0]
        said = ddm_rt("evaluate", method, *line, *budget, "--out", tmp_path / name)
        assert said.code == 0, said.err
        page = tmp_path / name / "index.html"
        assert f"report: {page}\n" in said.out
        figures = json.loads((tmp_path / name / "report.json").read_bytes())["methods"][0]
        assert figures["name"] == name
        assert figures["evaluation"]["n"] == (16 if name == "bundle" else 12)
        assert sum(figures["evaluation"]["raw"]["shares"]) == pytest.approx(1)
        html = page.read_text(encoding="utf-8")
        assert name in html
        assert not re.search(r"(src|href)=[\"']https?:", html), "the page needs no network"


def test_version(ddm_rt: Callable) -> None:
    assert ddm_rt("version").out.strip() == package.__version__


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(ddm_rt: Callable, name: str) -> None:
    assert name in ddm_rt("--help").out
    said = ddm_rt(name, "--help")
    assert said.code == 0
    assert said.out.strip()


def test_no_arguments_show_the_help(ddm_rt: Callable) -> None:
    said = ddm_rt()
    assert "Usage" in said.out + said.err
    assert "train" in said.out + said.err


@pytest.mark.parametrize(
    "line",
    [
        ("sing",),
        ("sample", "--louder"),
        ("sample", "digits"),
        ("sample", "digits", "-n", "many", "--out", "x"),
        ("train", "--indicator", "groups", "--out", "x"),
        ("sample", "digits", "--balance", "perhaps", "--out", "x"),
    ],
    ids=lambda line: " ".join(line),
)
def test_a_wrong_command_line_is_explained(
    ddm_rt: Callable, line: tuple[str, ...], tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = ddm_rt(*line)
    assert said.code == 2
    assert said.err.strip()
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


def test_a_message_keeps_its_brackets_and_stays_on_one_line(ddm_rt: Callable, monkeypatch) -> None:
    message = "graph [B,C,H,W] with [3, 8]\nrefused [/red] its \\[input"

    def refuse(*arguments: object) -> None:
        raise DdmError(message + " and so on" * 30)

    monkeypatch.setattr("ddm_rt.workflows.doctor.checks", refuse)
    said = ddm_rt("doctor")
    assert said.refusal() == " ".join((message + " and so on" * 30).split())


def test_a_fault_of_the_program_is_not_dressed_up_as_the_user_s(ddm_rt: Callable, monkeypatch) -> None:
    def fault(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("ddm_rt.workflows.doctor.checks", fault)
    with pytest.raises(KeyError, match="a bug"):
        ddm_rt("doctor")


def test_an_interrupt_outside_training_is_130(ddm_rt: Callable, monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddm_rt.workflows.doctor.checks", interrupted)
    said = ddm_rt("doctor")
    assert said.code == 130
    assert "Traceback" not in said.err


def test_set_takes_json_or_text() -> None:
    texts = ("train.steps=5", "train.indicator=codes", "model.unet.block_out_channels=[8, 16]", "data.source=a=b")
    assert options.assignments(texts) == {
        "train.steps": 5,
        "train.indicator": "codes",
        "model.unet.block_out_channels": [8, 16],
        "data.source": "a=b",
    }
    with pytest.raises(DdmError, match="expected FIELD=VALUE"):
        options.assignments(["train.steps"])


def test_workflows_name_a_documented_function_for_every_command() -> None:
    rows = re.findall(r"^- ([\w-]+)[^:]*: (.+)", workflows.__doc__ or "", re.MULTILINE)
    assert {command for command, _ in rows} == set(COMMANDS) - {"version"}
    for name in re.findall(r"`([\w.]+\.\w+)`", " ".join(calls for _, calls in rows)):
        full = name if name.startswith("ddm_rt.") else f"ddm_rt.workflows.{name}"
        assert pkgutil.resolve_name(full).__doc__, full
