"""The faces experiment on made-up faces: splits, judge by attribute, audits, and one cell from data to table."""

from pathlib import Path

import faces
import numpy as np
import pages.faces
import pytest
from faces_parts import calibration, cells, code_files, judging, label_free, sets
from numpy.typing import NDArray

from ddm_rt.config import FeatureConfig
from ddm_rt.presets import PRESETS

PER_GROUP = 80


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> sets.Faces:
    """Squares for heads: width tells gender, grey level race."""
    rng = np.random.default_rng(0)
    gender, race = np.repeat([0, 1], 4 * PER_GROUP), np.tile(np.repeat(range(4), PER_GROUP), 2)
    x = rng.integers(200, 256, (len(gender), 64, 64, 3)).astype(np.uint8)
    for image, wide, level in zip(x, gender, race, strict=True):
        side = 20 if wide else 10
        image[12:52, 32 - side : 32 + side] = 40 * level + rng.integers(0, 25)
    path = tmp_path_factory.mktemp("faces") / "faces.npz"
    np.savez(path, x=x, gender=gender.astype(np.uint8), race=race.astype(np.uint8))
    return sets.read(path)


def test_splits_share_no_image_and_are_even(drawn: sets.Faces) -> None:
    parts = {name: sets.split(drawn, name) for name in ("train", "judge", "reference")}
    seen = [image.tobytes() for part in parts.values() for image in part.images]
    assert len(set(seen)) == len(seen) == len(drawn)
    for part in parts.values():
        assert len(set(np.bincount(part.joint).tolist())) == 1


@pytest.mark.parametrize("name", sets.SETS)
def test_a_biased_set_has_its_ratio_and_the_other_attribute_is_even(drawn: sets.Faces, name: str) -> None:
    what = sets.SETS[name]
    found = sets.biased(sets.split(drawn, "train"), what, 120)
    counts = np.bincount(found.labels(what.attribute))
    assert counts / counts.sum() == pytest.approx(np.array(what.shares) / sum(what.shares), abs=0.02)
    other = next(attribute for attribute in sets.ATTRIBUTES if attribute != what.attribute)
    assert np.ptp(np.bincount(found.labels(other))) == 0


def test_audits_move_the_shares_to_the_target() -> None:
    rng = np.random.default_rng(0)
    share = np.linspace(0.02, 0.9, 8)  # of group 0 in each code
    codes = np.repeat(np.arange(8), 200)
    groups = (rng.random(len(codes)) > share[codes]).astype(np.int64)
    base = np.linspace(1, 8, 8) / 36
    for start in (None, base):
        weights, counts = calibration.audit(codes, groups, 256, 2, np.random.default_rng(1), start)
        assert counts.sum() == 256
        assert weights.sum() == pytest.approx(1)
        assert weights @ share == pytest.approx(0.5, abs=0.1)


def test_halving_of_a_rule_is_even_over_two_blobs() -> None:
    rng = np.random.default_rng(0)
    blob = np.repeat([0, 1], [90, 10])
    features = 10 * np.eye(2)[blob] + rng.standard_normal((100, 2))
    weights = label_free.Tree(features, 4).halving()
    assert weights[blob == 1].sum() == pytest.approx(0.5)
    assert label_free.rake([blob == 1], 100)[blob == 1].sum() == pytest.approx(0.5)


@pytest.mark.slow(reason="a whole run: training, export, samples, figures")
def test_a_cell_goes_from_data_to_the_table(drawn: sets.Faces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = FeatureConfig(steps=2, batch_size=16, width=2, thickness=False)
    monkeypatch.setattr(code_files, "FEATURES", dict.fromkeys(code_files.FEATURES, tiny))
    small = PRESETS["tiny"].model
    budget = {"train.steps": 2, "train.batch_size": 4, "sampling.num_steps": 2, "model.unet": small.unet}
    monkeypatch.setattr(cells, "BUDGET", cells.BUDGET | budget | {"model.head_hidden": small.head_hidden})
    for name, value in {"N": 64, "AUDIT_POOL": 128, "MAX_IMAGES": 64}.items():
        monkeypatch.setattr(cells, name, value)
    monkeypatch.setattr("faces_parts.measuring.N", 64)
    monkeypatch.setattr(judging, "make", _judge)
    faces.run_cell("gender 4:1", "calibrated 64 #0", drawn, tmp_path / "work", tmp_path)
    text = pages.faces.page(tmp_path)
    assert "| gender 4:1 | calibrated 64 #0 |" in text
    assert f"1 of {len(faces.cells())} cells run" in text
    assert "gender 4:1, calibrated 64: gender FD_ddm at most 0.12, mean of 1 draws" in text


_make = judging.make


def _judge(train: sets.Faces, held_out: sets.Faces, path: Path) -> object:
    judge = _make(train, held_out, path, steps=80)
    for attribute in sets.ATTRIBUTES:
        counts: NDArray[np.int64] = judging.AttributeJudge(judge, attribute).confusion
        assert counts.sum() == len(held_out), "sums over the other attribute lose no image"
    return judge
