"""Few-label codes: what the CSV may hold, what the probe finds, and that the run says how many labels were used."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.cli.display import show_codes
from ddm_rt.config import RunConfig
from ddm_rt.data import ImageSet
from ddm_rt.errors import DdmError
from ddm_rt.presets import resolve
from ddm_rt.train.codes.patches import patch_features
from ddm_rt.train.codes.probe import FOLDS, Labels, _folds, probe, read_labels
from ddm_rt.train.run import train

Make = Callable[..., RunConfig]
IMAGES = ImageSet(np.zeros((12, 8, 8, 1), np.uint8), None, tuple(f"{i}.png" for i in range(12)))


def write(path: Path, *rows: str, header: str = "image,label") -> Path:
    path.write_text("\n".join((header, *rows)) + "\n", encoding="utf-8")
    return path


def labels_of(truth: np.ndarray[Any, np.dtype[np.int64]], count: int, seed: int = 0) -> Labels:
    index = np.sort(np.random.default_rng(seed).choice(len(truth), count, replace=False))
    return Labels(index, truth[index], ("a", "b"), "0" * 64)


def test_images_are_named_by_file_or_by_number(tmp_path: Path) -> None:
    found = read_labels(write(tmp_path / "few.csv", "3.png,b", "0,a", "7.png, b ", "2.png,a"), IMAGES)
    assert found.index.tolist() == [0, 2, 3, 7]
    assert found.y.tolist() == [0, 0, 1, 1]
    assert found.classes == ("a", "b")
    assert found.counts == {"a": 2, "b": 2}


BAD = {
    "unknown image": (("99.png,a",), "line 2: '99.png' is not one of the 12 training images"),
    "number too large": (("1,a", "12,b"), "line 3: '12' is not one of"),
    "negative number": (("-1,a",), "'-1' is not one of"),
    "listed twice": (("1.png,a", "1,b"), "line 3: '1' is listed twice"),
    "no label": (("1.png,",), "line 2: '1.png' has no label"),
    "short row": (("1.png",), "line 2: '1.png' has no label"),
    "one class": (("1.png,a", "2.png,a"), "2 labels of 1 classes; expected two classes or more"),
    "no rows": ((), "0 labels of 0 classes"),
    "a rare class": (("1.png,a", "2.png,a", "3.png,b"), "class 'b' has 1 image; expected at least 2"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_named(case: str, tmp_path: Path) -> None:
    rows, said = BAD[case]
    with pytest.raises(DdmError, match=said) as error:
        read_labels(write(tmp_path / "few.csv", *rows), IMAGES)
    assert "few.csv" in str(error.value)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="cannot be read"):
        read_labels(tmp_path / "nowhere.csv", IMAGES)
    with pytest.raises(DdmError, match="expected a header with the columns image and label; found file, group"):
        read_labels(write(tmp_path / "few.csv", "1.png,a", header="file,group"), IMAGES)
    (tmp_path / "few.csv").write_bytes(b"image,label\n1.png,\xff\xfe\n")
    with pytest.raises(DdmError, match="not a CSV file in UTF-8"):
        read_labels(tmp_path / "few.csv", IMAGES)


@given(st.binary(max_size=200))
def test_any_bytes_are_labels_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(b"image,label\n" + content)
    try:
        found = read_labels(path, IMAGES)
    except DdmError:
        return
    assert len(set(found.index.tolist())) == len(found.index) >= 2 * len(found.classes)


def test_the_feature_set_that_knows_the_labels_is_chosen() -> None:
    rng = np.random.default_rng(0)
    truth = (np.arange(300) % 5 == 0).astype(np.int64)  # 4:1
    blind = rng.standard_normal((300, 8)).astype(np.float32)
    knowing = blind + 4 * truth[:, None].astype(np.float32)
    labels = labels_of(truth, 40)
    codes, assignment = probe({"blind": blind, "knowing": knowing}, labels, seed=0)
    assert codes.origin == "probe"
    assert codes.rule["features"] == "knowing"
    assert codes.rule["labels"] == 40
    assert codes.rule["labels_per_class"] == labels.counts
    assert codes.rule["cross_validation"]["knowing"]["accuracy"] > codes.rule["cross_validation"]["blind"]["accuracy"]
    assert codes.top_of == (0, 1)
    assert (assignment == truth).mean() >= 0.98
    again = probe({"blind": blind, "knowing": knowing}, labels, seed=0)
    assert again[0] == codes
    assert (again[1] == assignment).all()


def test_labels_are_spread_over_the_folds_and_anew_in_each_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[np.ndarray] = []

    def folds(*arguments: Any) -> np.ndarray:
        made.append(_folds(*arguments))
        return made[-1]

    monkeypatch.setattr("ddm_rt.train.codes.probe._folds", folds)
    y = np.repeat(np.arange(FOLDS), 2)  # as many classes as folds, of two labels each
    labels = Labels(np.arange(len(y)), y, tuple("abcde"), "00" * 32)
    probe({"blind": np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)}, labels, seed=0)
    for fold in made:
        assert np.bincount(fold).tolist() == [2] * FOLDS
        assert all(len(set(fold[y == k].tolist())) == 2 for k in range(FOLDS))
    first, second = made[:2]
    assert (first != second).any()


def test_a_labelled_image_keeps_its_label() -> None:
    truth = np.arange(60, dtype=np.int64) % 2
    features = np.random.default_rng(0).standard_normal((60, 3)).astype(np.float32)  # they know nothing of it
    labels = labels_of(truth, 20)
    _, assignment = probe({"blind": features}, labels, seed=0)
    assert (assignment[labels.index] == labels.y).all()


@pytest.mark.parametrize("shape", [(40, 1, 16, 16), (6, 3, 8, 8), (5, 3, 48, 40)])
def test_patch_features_are_finite_and_repeat(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    images[0] = 0  # an even image has no contrast to be normalised
    found = patch_features(images, seed=0)
    assert found.shape[0] == shape[0]
    assert np.isfinite(found).all()
    assert (patch_features(images, seed=0) == found).all()


def test_a_run_says_that_its_codes_used_labels(tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = write(tmp_path / "few.csv", *(f"{i:03d}.png,{'down' if i % 4 == 3 else 'across'}" for i in range(16)))
    run = train(tiny({"train.indicator": "probe", "codes.labels": str(few)}), tmp_path / "run")
    codes = json.loads((run / "codes.json").read_bytes())
    assert codes["origin"] == "probe"
    assert codes["rule"]["labels"] == 16
    assert codes["rule"]["labels_per_class"] == {"across": 12, "down": 4}
    assert (run / "weights.safetensors").is_file()
    show_codes(run)
    assert "fitted on 16 labelled images: this mode used labels" in capsys.readouterr().out


@pytest.mark.parametrize(
    "overrides",
    [{"train.indicator": "probe"}, {"codes.labels": "few.csv"}],
    ids=["a probe without labels", "labels without a probe"],
)
def test_labels_and_probe_need_each_other(overrides: dict[str, Any]) -> None:
    with pytest.raises(DdmError, match=r"codes\.labels .* and train.indicator probe need each other"):
        resolve("tiny", overrides)


def test_labels_and_a_codes_file_exclude_each_other() -> None:
    with pytest.raises(DdmError, match=r"codes\.labels and codes.source exclude each other"):
        resolve("tiny", {"train.indicator": "probe", "codes.labels": "few.csv", "codes.source": "codes.json"})
