"""`ddm-rt compare`: the decision is the exit code, and a mistake is none of the decisions."""

import json
from pathlib import Path

import pytest

import ddm_rt.cli.compare  # noqa: F401  (adds the command)

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((DIGITS, "digits@stepz=3"), "expected KEY=VALUE with KEY one of: steps"),
        ((DIGITS, "digits@steps=0"), "num_steps"),
        ((DIGITS, "digits@guidance=nan"), "indicator_guidance_scale is nan"),
        ((DIGITS, "digits@backend=torch"), "weights"),
        ((DIGITS, "nowhere"), "nowhere"),
        ((DIGITS, DIGITS, "--margin", 0), "margin is 0.0"),
        ((DIGITS, DIGITS, "--groups", "3,5"), "groups: 5 unknown to the judge"),
    ],
)
def test_a_mistake_is_2(ddm_rt, tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    assert message in ddm_rt(*LINE, *options, "-n", 4, "--out", tmp_path / "out").refusal()
    assert list(tmp_path.iterdir()) == []
