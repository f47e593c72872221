"""`ddm-rt upgrade`: a bundle of format 1 with its calibration, ledger and manifests, as a user does it."""

import io
import json
import shutil
from pathlib import Path

import pytest
from format1 import write_format_1
from PIL import Image

from ddm_rt.bundle import INDEX, Bundle
from ddm_rt.files import write_atomic
from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.balance.quota import TreeQuota

SAMPLE = ("--backend", "onnxruntime", "--threads", 1, "--steps", 2)


def pixels(png: bytes) -> bytes:
    return Image.open(io.BytesIO(png)).tobytes()


@pytest.fixture
def old(tmp_path: Path) -> Bundle:
    """The shipped digits as they were in format 1, with their old id."""
    shipped = Bundle.load("digits")
    made = write_format_1(shipped, tmp_path / "old")
    assert made.config == shipped.config
    return made


def test_images_ledger_and_manifests_go_on(ddm_rt, old: Bundle, tmp_path: Path) -> None:
    ledger, line = tmp_path / "counts.ledger", ("-n", 3, "--scope", "campaign", *SAMPLE)
    said = ddm_rt("sample", old.path, "--out", tmp_path / "first", "--ledger", ledger, *line)
    assert said.code == 0, said.err
    said = ddm_rt("upgrade", old.path, "--out", tmp_path / "new")
    assert said.code == 0, said.err
    new = Bundle.load(tmp_path / "new")
    assert f"id: {new.bundle_id}" in said.out
    assert f"made from: {old.bundle_id}" in said.out

    refused = ddm_rt("sample", new.path, "--out", tmp_path / "second", "--ledger", ledger, *line).refusal()
    assert f"move it with `ddm-rt upgrade {new.path} --ledger {ledger}`" in refused
    assert not (tmp_path / "second").exists()
    said = ddm_rt("upgrade", new.path, "--ledger", ledger)
    assert said.code == 0, said.err
    assert f"bundle: {new.path} (it had this format already)" in said.out
    assert f"ledger: {ledger}: 1 stream moved" in said.out
    assert "nothing to move" in ddm_rt("upgrade", new.path, "--ledger", ledger).out
    assert ddm_rt("sample", new.path, "--out", tmp_path / "second", "--ledger", ledger, *line).code == 0
    positions = [
        image["position"]
        for folder in ("first", "second")
        for image in json.loads((tmp_path / folder / "manifest.json").read_bytes())["images"]
    ]
    assert positions == list(range(6))
    refused = ddm_rt("sample", old.path, "--out", tmp_path / "x", "--ledger", ledger, *line).refusal()
    assert "belongs to bundle" in refused

    said = ddm_rt("sample", new.path, "--from", tmp_path / "first" / "manifest.json", "--out", tmp_path / "again")
    assert said.code == 0, said.err
    for picture in (tmp_path / "first").glob("0*.png"):
        # All but what the files say of their bundle.
        told = (tmp_path / "again" / picture.name).read_bytes()
        assert old.bundle_id.encode() in picture.read_bytes()
        assert new.bundle_id.encode() in told
        assert pixels(told) == pixels(picture.read_bytes())
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_bytes())
    assert manifest["bundle_id"] == new.bundle_id
    # The old bundle knows no ids that came later.
    newer = ("--from", tmp_path / "again" / "manifest.json")
    assert "bundle_id is" in ddm_rt("sample", old.path, *newer, "--out", tmp_path / "y").refusal()


def test_the_same_command_again_goes_on_where_it_was_killed(ddm_rt, old: Bundle, tmp_path: Path) -> None:
    """The bundle stands and one ledger is moved; another one isn't."""
    ledgers = tmp_path / "a.ledger", tmp_path / "b.ledger"
    for path in ledgers:
        with Ledger(path) as counts:
            stream = Stream(old.bundle_id, "campaign", "uniform")
            counts.lease(stream, lambda: TreeQuota([1.0], [{0: 1.0}]), 2).commit()
    line = ("upgrade", old.path, "--out", tmp_path / "new", "--ledger", ledgers[0])
    assert ddm_rt(*line).code == 0
    said = ddm_rt(*line, "--ledger", ledgers[1])
    assert said.code == 0, said.err
    assert f"ledger: {ledgers[0]}: nothing to move" in said.out
    assert f"ledger: {ledgers[1]}: 1 stream moved" in said.out
    other = write_format_1(Bundle.load("digits"), tmp_path / "other", name="other")
    assert "holds another bundle" in ddm_rt("upgrade", other.path, "--out", tmp_path / "new").refusal()


def test_a_calibration_goes_on(ddm_rt, old: Bundle, tmp_path: Path) -> None:
    line = ("--judge", "digits", "--groups", "3,8", "-n", 16, *SAMPLE)
    said = ddm_rt("calibrate", old.path, "--out", tmp_path / "calibrated", *line)
    assert said.code == 0, said.err
    path = tmp_path / "calibrated"
    target = ("--target", "3=.5,8=.5", "-n", 2, *SAMPLE)
    assert ddm_rt("sample", path, "--out", tmp_path / "before", *target).code == 0
    said = ddm_rt("upgrade", path)
    assert said.code == 0, said.err
    said = ddm_rt("sample", path, "--out", tmp_path / "after", *target)
    assert said.code == 0, said.err
    assert "another bundle" not in said.err
    before, after = (json.loads((tmp_path / name / "manifest.json").read_bytes()) for name in ("before", "after"))
    assert (after["calibration_id"], after["images"]) == (before["calibration_id"], before["images"])
    assert after["bundle_id"] != before["bundle_id"]


def test_a_ledger_of_the_shipped_bundle_is_moved(ddm_rt, tmp_path: Path) -> None:
    """Whatever its place: an id is all that a ledger knows of a bundle."""
    [former] = Bundle.load("digits").index.former_ids
    ledger = tmp_path / "counts.ledger"
    with Ledger(ledger) as counts:
        counts.lease(Stream(former, "campaign", "uniform"), lambda: TreeQuota([1.0], [{0: 1.0}]), 2).commit()
    refused = ddm_rt("sample", "digits", "-n", 1, "--scope", "campaign", "--ledger", ledger, "--out", tmp_path / "x")
    assert "ddm-rt upgrade" in refused.refusal()
    assert "1 stream moved" in ddm_rt("upgrade", "digits", "--ledger", ledger).out


def test_what_cannot_be_upgraded_is_refused_and_nothing_is_left(ddm_rt, old: Bundle, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    none = tmp_path / "none.ledger"
    assert f"ledger {none}: no such file" in ddm_rt("upgrade", old.path, "--ledger", none).refusal()
    assert "has format 2 already" in ddm_rt("upgrade", "digits", "--out", tmp_path / "copy").refusal()
    assert "holds another bundle" in ddm_rt("upgrade", old.path, "--out", old.path).refusal()
    assert "no such directory" in ddm_rt("upgrade", tmp_path / "nowhere").refusal()
    assert sorted(tmp_path.rglob("*")) == before
    assert Bundle.load(old.path).index.schema_version == 1


def test_a_bundle_that_cannot_be_opened_is_not_upgraded(ddm_rt, old: Bundle, tmp_path: Path) -> None:
    shutil.copytree(old.path, tmp_path / "broken")
    write_atomic(tmp_path / "broken" / "codes.json", "{}")
    before = (tmp_path / "broken" / INDEX).read_bytes()
    assert "codes.json: " in ddm_rt("upgrade", tmp_path / "broken").refusal()
    assert (tmp_path / "broken" / INDEX).read_bytes() == before
