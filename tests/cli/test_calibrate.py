"""`ddm-rt calibrate` on the shipped digits: with a judge, by hand, and what is refused."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.calibration.calibration import load_all

STEPS = 4  # the digits are told apart as well as at 25
SETTINGS = ("--steps", STEPS, "--threads", 1)


def fill(path: Path, group_of: Callable[[int, str], str]) -> None:
    """Write a group into each row of an audit.csv."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *([row[0], group_of(i, row[0])] for i, row in enumerate(rows))])


def judged(folder: Path) -> Callable[[int, str], str]:
    """What the judge says of each image; ? where it is neither digit."""
    judge = Judge.load("digits")

    def group_of(i: int, name: str) -> str:
        with Image.open(folder / name) as image:
            label = str(judge.predict(np.asarray(image)[None]).labels[0])
        return label if label in ("3", "8") else "?"

    return group_of


@pytest.fixture(scope="module")
def audit_set(ddm_rt, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A filled set of 16 images and what the command said when it made it. Read-only."""
    folder = tmp_path_factory.mktemp("audits") / "first"
    done = ddm_rt("calibrate", "digits", "--groups", "3,8", "-n", 24, "--images", folder, *SETTINGS)
    assert done.code == 0, done.err
    fill(folder / "audit.csv", judged(folder))
    return folder, done.out


@pytest.fixture
def copied(audit_set: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the set, to be spoilt."""
    return Path(shutil.copytree(audit_set[0], tmp_path / "audit"))


def test_with_a_judge(ddm_rt, tmp_path: Path) -> None:
    line = ("calibrate", "digits", "--judge", "digits", "--groups", "3,8", "-n", 40, "--target", "3=.3,8=.7")
    done = ddm_rt(*line, *SETTINGS, "--out", tmp_path / "bundle", "--name", "few-steps")
    assert done.code == 0, done.err
    assert "effective numbers" in done.out
    assert "reachable" in done.out
    bundle = Bundle.load(tmp_path / "bundle")
    assert bundle.bundle_id == Bundle.load("digits").bundle_id
    record, calibration_id = load_all(bundle)["few-steps"]
    assert f"id {calibration_id}" in done.out
    assert record.audited + sum(record.unsure) == 40
    assert record.provenance["judges"]["group"]["name"] == "digits"
    assert [one["n"] for one in record.provenance["sets"]] == [20, 20], "half are drawn by the weights so far"
    assert record.settings.num_steps == STEPS

    sampled = ddm_rt(
        *("sample", tmp_path / "bundle", "-n", 40, "--target", "3=.3,8=.7", *SETTINGS, "--out", tmp_path / "images")
    )
    assert sampled.code == 0, sampled.err
    manifest = json.loads((tmp_path / "images" / "manifest.json").read_bytes())
    assert manifest["calibration_id"] == calibration_id
    threes = [judged(tmp_path / "images")(0, image["file"]) == "3" for image in manifest["images"]]
    assert 6 <= sum(threes) <= 18, "12 are wanted; the reason to be wide is the calibration's own error"


def test_by_hand(ddm_rt, audit_set: tuple[Path, str], tmp_path: Path) -> None:
    first, said = audit_set
    assert f"--audit {first / 'audit.csv'} -n 24 --images DIR" in said
    names = {path.name for path in first.iterdir()}
    assert {"audit.csv", "audit.json", "manifest.json", "contact_sheet_01.png", "00015.png"} <= names
    codes = [image["code"] for image in json.loads((first / "manifest.json").read_bytes())["images"]]
    assert sorted(codes) == list(range(16)), "every code once before any twice"

    second, line = tmp_path / "second", ("calibrate", "digits", "--audit", first / "audit.csv", "--target", "3=.5,8=.5")
    done = ddm_rt(*line, "-n", 24, "--images", second, "--threads", 1)
    assert done.code == 0, done.err
    manifest = json.loads((second / "manifest.json").read_bytes())
    assert manifest["num_steps"] == STEPS, "the settings of the first set"
    assert len(manifest["images"]) == 24 - sum(group != "?" for group in groups(first))
    fill(second / "audit.csv", judged(second))

    done = ddm_rt(*line, "--audit", second / "audit.csv", "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    record, _ = load_all(Bundle.load(tmp_path / "bundle"))["default"]
    assert record.audited == sum(group != "?" for group in groups(first) + groups(second))
    assert record.provenance["method"] == "audit"
    assert record.targets[0].target == "group:3=0.5,8=0.5"


def groups(folder: Path) -> list[str]:
    with (folder / "audit.csv").open(newline="", encoding="utf-8") as file:
        return [row["group"] for row in csv.DictReader(file)]


def test_a_sampled_folder_serves_as_an_audit_set(ddm_rt, tmp_path: Path) -> None:
    folder = tmp_path / "sampled"
    assert ddm_rt("sample", "digits", "-n", 20, *SETTINGS, "--out", folder).code == 0
    rows = [f"{i:05d}.png,{'one' if i % 2 else 'two'},{'x' if i % 3 else 'y'}" for i in range(20)]
    (folder / "audit.csv").write_text("\n".join(["image,a,b", *rows]), encoding="utf-8-sig")
    done = ddm_rt("calibrate", "digits", "--audit", folder / "audit.csv", "--out", tmp_path / "bundle")
    assert done.code == 0, done.err
    record, _ = load_all(Bundle.load(tmp_path / "bundle"))["default"]
    assert [(one.name, one.groups) for one in record.attributes] == [("a", ("one", "two")), ("b", ("x", "y"))]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("00003.png", "00099.png"), "line 5: image '00099.png' is not in"),
        (lambda text: text.replace("00003.png", "00001.png"), "line 5: image '00001.png' stands on line 3 too"),
        (lambda text: text.replace("00003.png,", "00003.png,3x"), "line 5: group is '3x"),
        (lambda text: text.split("00003.png")[0] + "00003.png,\n", "line 5: 00003.png has no group; expected one of 3"),
        (lambda text: text.split("00003.png")[0] + "00003.png\n", "line 5: 00003.png has no group"),
        (lambda text: text.split("00003.png")[0] + "00003.png,3,8\n", "line 5: more values than columns"),
        (lambda text: text.split("00005.png")[0], "audited images have their groups; expected at least 8"),
        (lambda text: text.split("00000.png")[0], "no rows; expected one for each audited image"),
        (lambda text: "", "its columns are (none); expected image, then one per attribute"),
        (lambda text: text.replace("image,group", "image,kind"), "expected image, group"),
        (lambda text: text.replace("image,group", "file,group"), "expected image, then one per attribute"),
    ],
)
def test_bad_audit_files(ddm_rt, copied: Path, tmp_path: Path, spoil: Callable[[str], str], message: str) -> None:
    path = copied / "audit.csv"
    path.write_text(spoil(path.read_text(encoding="utf-8")), encoding="utf-8")
    out = tmp_path / "bundle"
    said = ddm_rt("calibrate", "digits", "--audit", path, "--out", out).refusal()
    assert message in said
    assert str(path) in said or "expected at least 8" in said
    assert not out.exists()


def test_bad_audit_sets(ddm_rt, copied: Path, tmp_path: Path) -> None:
    path, out = copied / "audit.csv", tmp_path / "bundle"

    def said(*more: object) -> str:
        message = ddm_rt("calibrate", "digits", "--out", out, *more).refusal()
        assert not out.exists()
        return message

    assert "no such file; expected the audit.csv" in said("--audit", copied / "none.csv")
    assert "stands in" in said("--audit", path, "--audit", path)
    assert "target '4=.5,3=.5': group '4' is unknown; known: group: 3, 8" in said(
        "--audit", path, "--target", "4=.5,3=.5"
    )
    assert "is out of reach" in said("--audit", path, "--target", "3=.99,8=.01")
    assert "leave out --scope, --steps and the like" in said("--audit", path, "--steps", 8)
    assert "--n is 10, and" in said("--audit", path, "-n", 10, "--images", tmp_path / "more")
    assert "--seed is 1000000, which made an earlier set" in said(
        *("--audit", path, "--images", tmp_path / "more", "--seed", 1_000_000)
    )
    path.write_bytes(b"image,group\n00000.png,\xff\n")
    assert "not a CSV file in UTF-8" in said("--audit", path)
    manifest = copied / "manifest.json"
    manifest.write_text(manifest.read_text().replace(Bundle.load("digits").bundle_id, "f" * 64))
    path.write_text("image,group\n00000.png,3\n")
    assert "its images are of bundle ffffffffffff" in said("--audit", path)
    manifest.unlink()
    assert "manifest.json: cannot be read" in said("--audit", path)


def test_bad_arguments(ddm_rt, tmp_path: Path) -> None:
    judge = ("calibrate", "digits", "--judge", "digits", "--out", tmp_path / "bundle")
    for line, message in (
        (("calibrate", "digits", "--images", tmp_path / "x"), "--groups: name the groups to tell apart"),
        (("calibrate", "digits", "--groups", "3,8"), "--images: name a directory for the images to label"),
        (("calibrate", "digits", "--judge", "digits", "--groups", "3,8"), "can't be written to; --out DIR"),
        ((*judge, "--groups", "3,9"), "--groups: 9 is unknown to the judge of group; its classes: 0, 1, 3, 7, 8"),
        ((*judge, "--groups", "a:3,8;b:0,1"), "--judge: judges of a; expected one for each of a, b"),
        ((*judge, "--groups", "3,8", "-n", 0), "--n is 0"),
        ((*judge, "--groups", "3,8", "--target", "3=.5,8=.6"), "sum to 1.1; expected 1"),
        ((*judge, "--groups", "3,8", "--audit", "a.csv"), "--audit and --judge: give one of them"),
        ((*judge, "--groups", "3,8", "--images", "x"), "--judge needs none"),
    ):
        assert message in ddm_rt(*line).refusal()
    assert not list(tmp_path.iterdir())
