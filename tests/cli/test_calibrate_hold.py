"""`ddm-rt calibrate --hold` on the shipped digits, with two attributes that a person is said to have labelled."""

import json
from pathlib import Path

import pytest

from ddm_rt.bundle import Bundle
from ddm_rt.sample.calibration.calibration import load_all, resolve

STEPS = 4


@pytest.fixture(scope="module")
def audited(ddm_rt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 images; codes of one digit are said to be women, all but one of them asian."""
    folder = tmp_path_factory.mktemp("held") / "audit"
    done = ddm_rt("calibrate", "digits", "--groups", "gender:female,male;race:asian,white", "--images", folder,
                  *("-n", 64, "--steps", STEPS, "--threads", 1))  # fmt: skip
    assert done.code == 0, done.err
    top_of = Bundle.load("digits").codes.top_of
    rows = ["image,gender,race"]
    for image in json.loads((folder / "manifest.json").read_bytes())["images"]:
        women = top_of[image["code"]] == 0
        rows.append(
            f"{image['file']},{'female' if women else 'male'},{'asian' if women != (image['code'] == 5) else 'white'}"
        )
    (folder / "audit.csv").write_text("\n".join(rows) + "\n")
    return folder / "audit.csv"


def test_without_a_hold_it_says_what_else_moved(ddm_rt, audited: Path, tmp_path: Path) -> None:
    done = ddm_rt("calibrate", "digits", "--audit", audited, "--target", "female=.6,male=.4", "--out", tmp_path / "b")
    assert done.code == 0, done.err
    assert "race: its shares moved by 0.1" in done.out
    assert "gender: " not in done.out, "it is what was aimed at"


def test_a_held_attribute_stays_and_the_file_says_so(ddm_rt, audited: Path, tmp_path: Path) -> None:
    line = ("calibrate", "digits", "--audit", audited, "--target", "female=.6,male=.4", "--hold", "race<=.03")
    done = ddm_rt(*line, "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    assert "race: 0.030 off the shares to hold, bound 0.03" in done.out
    assert "effective numbers" in done.out.split("expected shares")[-1], "the compromises, in a table"
    bundle = Bundle.load(tmp_path / "bundle")
    record, _ = load_all(bundle)["default"]
    held = record.provenance["hold"]
    assert (held["attribute"], held["bound"]) == ("race", 0.03)
    assert len(held["curve"]) >= 3
    found = resolve(bundle, "male=.4,female=.6", record.settings)
    asian = found.shares["race"]["asian"][0]
    assert abs(asian - held["reference"]["asian"]) == pytest.approx(0.03 / 2**0.5, abs=1e-5)
    assert found.shares["gender"]["female"][0] == pytest.approx(0.6, abs=1e-6)


def test_where_both_cannot_be_had_there_is_a_curve_and_nothing_is_written(
    ddm_rt, audited: Path, tmp_path: Path
) -> None:
    line = ("calibrate", "digits", "--audit", audited, "--target", "female=.35,male=.65", "--hold", "race<=.01")
    done = ddm_rt(*line, "--out", tmp_path / "bundle")
    assert done.code == 2
    assert "can't both be had" in done.err
    assert "race off" in done.out, "the compromises, in a table"
    assert not (tmp_path / "bundle").exists()


def test_the_next_commands_hold_too(ddm_rt, audited: Path, tmp_path: Path) -> None:
    line = ("calibrate", "digits", "--audit", audited, "--target", "female=.6,male=.4", "--hold", "race<=.03")
    done = ddm_rt(*line, "-n", 66, "--threads", 1, "--images", tmp_path / "more")
    assert done.code == 0, done.err
    assert "--hold 'race<=.03'" in done.out


def test_bad_holds(ddm_rt, audited: Path, tmp_path: Path) -> None:
    line = ("calibrate", "digits", "--audit", audited, "--out", tmp_path / "bundle", "--hold")
    assert "attribute 'age' is unknown; known: gender, race" in ddm_rt(*line, "age").refusal()
    assert "expected a number above 0" in ddm_rt(*line, "race<=0").refusal()
    said = ddm_rt(*line, "race", "--target", "race:uniform").refusal()
    assert "race stands in the target 'race:uniform' too" in said
    judge = ("calibrate", "digits", "--judge", "digits", "--groups", "3,8", "--out", tmp_path / "bundle", "--hold")
    assert "attribute 'race' is unknown; known: group" in ddm_rt(*judge, "race").refusal()
    assert "group is the only attribute" in ddm_rt(*judge, "group").refusal()
    assert not list(tmp_path.iterdir())
