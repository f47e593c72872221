"""`ddm-rt compare`: the decision is the exit code, and a mistake is none of the decisions."""

import html
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import brightness_judge
import pytest

import ddm_rt.cli.calibrate
import ddm_rt.cli.compare  # noqa: F401  (adds the command)
from ddm_rt.bundle import Bundle

LINE = ("compare", "--threads", 1, "--rounds", 0, "--reference", "none")
DIGITS = "digits@steps=2"


def test_as_fair_is_0_and_undecided_is_3(ddm_rt, tmp_path: Path) -> None:
    said = ddm_rt(*LINE, DIGITS, DIGITS, "-n", 90, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert f"{DIGITS} keeps the shares of {DIGITS}: every difference lies within ±0.03" in said.out
    assert f"report: {tmp_path / 'out' / 'index.html'}\n" in said.out
    assert json.loads((tmp_path / "out" / "compare.json").read_bytes())["labels"]["decision"] == 0
    said = ddm_rt(*LINE, DIGITS, DIGITS, "-n", 8)
    assert said.code == 3, said.err
    assert "About 80 more images would decide: -n 88, with another --seed." in said.out


def test_drift_is_1(ddm_rt, tmp_path: Path) -> None:
    """Images of a judge that sees one group on one side alone: codes of one branch against those of both."""
    said = ddm_rt("sample", "digits", "-n", 24, "--steps", 2, "--threads", 1, "--out", tmp_path / "both")
    assert said.code == 0, said.err
    manifest = json.loads((tmp_path / "both" / "manifest.json").read_bytes())
    first = {image["top_code"]: image["file"] for image in manifest["images"]}
    faulty = tmp_path / "faulty"
    faulty.mkdir()
    (faulty / "manifest.json").write_bytes((tmp_path / "both" / "manifest.json").read_bytes())
    for image in manifest["images"]:  # an engine that forgets codes gives every image of one branch
        (faulty / image["file"]).write_bytes((tmp_path / "both" / first[0]).read_bytes())
    said = ddm_rt(*LINE, tmp_path / "both", faulty)
    assert said.code == 1, said.err
    assert "has drifted from" in said.out


def test_it_says_whether_a_calibration_holds_for_the_other_side(ddm_rt, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    lines = ("-n", 64, "--steps", 4, "--threads", 1, "--out", teacher)
    assert ddm_rt("calibrate", "digits", "--judge", "digits", "--groups", "3,8", *lines).code == 0
    asked = ("--target", "3=.7,8=.3", "-n", 40, "--margin", 0.4)
    said = ddm_rt(*LINE, f"{teacher}@steps=4", DIGITS, *asked, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out" / "compare.json").read_bytes())["calibrated"]
    assert [(each["group"], each["wanted"]) for each in found["groups"]] == [("3", 0.7), ("8", 0.3)]
    told = (
        f"A's calibration {found['calibration_id'][:12]} holds for {DIGITS}, within ±0.4: for 3=.7,8=.3, B gives 3 0."
    )
    assert told in said.out
    assert told in html.unescape((tmp_path / "out" / "index.html").read_text())
    said = ddm_rt(*LINE, DIGITS, DIGITS, "-n", 8)
    assert "calibration" not in said.out
    said = ddm_rt(*LINE, f"{teacher}@steps=4", DIGITS, *asked, "--groups", "3,7")  # the target isn't about these
    assert said.code in (0, 1, 3), said.err
    assert "calibration" not in said.out


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary bundles are made."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


INT8 = pytest.param("int8", marks=pytest.mark.slow(reason="measures ranges on images of its own; fp16 is quick"))


@pytest.mark.parametrize("precision", ["fp16", INT8])
def test_a_side_in_another_precision_is_converted_first(
    ddm_rt, tmp_path: Path, temporary: Path, precision: str
) -> None:
    side = f"{DIGITS},precision={precision}"
    said = ddm_rt(*LINE, DIGITS, side, "-n", 8, "--margin", 0.6, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    assert f"digits was converted to {precision} for this comparison (id " in said.out
    assert f"`ddm-rt export digits --precision {precision} --out DIR` keeps it" in said.out
    found = json.loads((tmp_path / "out" / "compare.json").read_bytes())
    assert (found["a"]["precision"], found["b"]["precision"]) == ("fp32", precision)
    assert (found["a"]["label"], found["b"]["label"]) == (DIGITS, side)
    assert found["b"]["bundle_id"][:12] in said.out
    assert found["a"]["bundle_id"] != found["b"]["bundle_id"]
    assert list(temporary.iterdir()) == [], "it ends with the comparison"


def test_one_conversion_serves_both_sides_and_fp32_needs_none(ddm_rt, temporary: Path) -> None:
    sides = "digits@steps=2,precision=fp16", "digits@steps=3,precision=fp16"
    said = ddm_rt(*LINE, *sides, "-n", 4)
    assert said.out.count("was converted to fp16") == 1, said.err
    said = ddm_rt(*LINE, DIGITS, f"{DIGITS},precision=fp32", "-n", 4)
    assert "was converted" not in said.out
    assert said.code == 3, said.err


def test_what_was_rounded_is_not_rounded_again(ddm_rt, tmp_path: Path, temporary: Path) -> None:
    half = tmp_path / "half"
    assert ddm_rt("export", "digits", "--precision", "fp16", "--out", half).code == 0
    said = ddm_rt(*LINE, f"{half}@steps=2", f"{half}@precision=fp16,steps=2", "-n", 4)
    assert "was converted" not in said.out
    assert said.code == 3, said.err
    for precision in ("fp32", "int8"):
        message = ddm_rt(*LINE, DIGITS, f"{half}@precision={precision}", "-n", 4).refusal()
        assert f"half is fp16, not {precision}; fp32 bundles alone are converted" in message
    assert ddm_rt("sample", "digits", "-n", 2, "--steps", 2, "--out", tmp_path / "images").code == 0
    message = ddm_rt(*LINE, DIGITS, f"{tmp_path / 'images'}@precision=fp16").refusal()
    assert "holds images, made already; settings belong to a bundle" in message
    assert list(temporary.iterdir()) == []


def test_prompts_are_for_both_sides(
    ddm_rt, latent_bundles: Mapping[str, Bundle], tmp_path: Path, temporary: Path
) -> None:
    bundle = latent_bundles["sd15"].path
    judge = brightness_judge.write(tmp_path / "judge.onnx", shape=("B", 3, 64, 64), confusion=None)
    line = (*LINE, "--judge", judge, "--groups", "dark,light", "-n", 4, "--margin", 0.9, "--out", tmp_path / "out")
    text = ("--prompt", "a doctor", "--prompt", "a nurse", "--negative-prompt", "blurry", "--guidance-scale", 4)
    said = ddm_rt(*line, f"{bundle}@steps=2", f"{bundle}@steps=2,precision=fp16,text_guidance=3", *text)
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "out" / "compare.json").read_bytes())
    for side, scale in (("a", 4.0), ("b", 3.0)):
        assert found[side]["prompt"] == ["a doctor", "a nurse"]
        assert found[side]["negative_prompt"] == "blurry"
        assert found[side]["guidance_scale"] == scale
    assert found["b"]["precision"] == "fp16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((DIGITS, "digits@precision=fp12"), "precision is 'fp12'; expected one of fp32, fp16, bf16, int8, fp8"),
        (
            (DIGITS, "digits@precision=int8,backend=torch"),
            "precision is int8; backend torch computes in fp32, bf16, fp16",
        ),
        ((DIGITS, "nowhere@precision=fp16"), "nowhere"),
        ((DIGITS, DIGITS, "--prompt", "a nurse"), "prompt is given; bundle 'digits' is prompt-free"),
        ((DIGITS, DIGITS, "--guidance-scale", 2), "guidance_scale is 2.0; bundle 'digits' is prompt-free"),
        ((DIGITS, "digits@text_guidance=2"), "guidance_scale is 2.0; bundle 'digits' is prompt-free"),
        ((DIGITS, "digits@stepz=3"), "expected KEY=VALUE with KEY one of: steps"),
        ((DIGITS, "digits@steps=0"), "num_steps"),
        ((DIGITS, "digits@guidance=nan"), "indicator_guidance_scale is nan"),
        ((DIGITS, "nowhere"), "nowhere"),
        ((DIGITS, DIGITS, "--margin", 0), "margin is 0.0"),
        ((DIGITS, DIGITS, "--groups", "3,5"), "groups: 5 unknown to the judge"),
    ],
)
def test_a_mistake_is_2(ddm_rt, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    assert message in ddm_rt(*LINE, *options, "-n", 4, "--out", tmp_path / "out").refusal()
    assert list(tmp_path.iterdir()) == []
