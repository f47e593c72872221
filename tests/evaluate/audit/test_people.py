"""Labels of people: CSV files, the majority, and kappa against scikit-learn."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from tolerances import STATISTIC_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit.people import agreements, kappa, read_people
from ddm_rt.evaluate.intervals import wilson

NAMES = ("0.png", "a/1.png", "b/1.png", "2.png")


@pytest.fixture
def write(tmp_path: Path):
    def written(text: str) -> Path:
        path = tmp_path / "labels.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return written


def test_one_person(write) -> None:
    people = read_people(write("image,label\n0.png,x\na/1.png,y\n2.png,?\n"), "gender", NAMES)
    assert people.labels.tolist() == ["x", "y", "", ""]
    assert people.groups == ("x", "y")
    assert agreements("gender", people, seed=0) == ()


def test_an_audit_csv_of_calibrate_serves_too(write) -> None:
    assert read_people(write("image,gender\n0.png,x\n"), "gender", NAMES).labels.tolist() == ["x", "", "", ""]


def test_the_majority_speaks_and_a_tie_is_silent(write) -> None:
    rows = ["0.png,x,p", "0.png,x,q", "0.png,y,r", "2.png,x,p", "2.png,y,q", "b/1.png,y,q"]
    people = read_people(write("\n".join(["image,label,rater", *rows])), "g", NAMES)
    assert people.labels.tolist() == ["x", "", "y", ""]
    assert list(people.by_rater) == ["p", "q", "r"]
    assert [found.raters for found in agreements("g", people, seed=0)] == [("p", "q"), ("p", "r"), ("q", "r")]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected the columns image and label"),
        ("image,sex\n0.png,x\n", "expected the columns"),
        ("file,label\n0.png,x\n", "expected the columns"),
        ("image,label\nnowhere.png,x\n", "line 2: 'nowhere.png' is no image of the folder"),
        ("image,label\n1.png,x\n", "line 2: '1.png' is no image of the folder (or the name of several)"),
        ("image,label\n0.png,x\n0.png,y\n", "line 3: rater labels '0.png' twice"),
        ("image,label,rater\n0.png,x,p\n0.png,y,p\n", "line 3: p labels"),
    ],
)
def test_a_file_that_does_not_fit(write, text: str, said: str) -> None:
    with pytest.raises(DdmError, match=r"labels\.csv") as error:
        read_people(write(text), "gender", NAMES)
    assert said in str(error.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_bytes(b"\xff\xfe\x00image")
    with pytest.raises(DdmError, match="not a CSV file in UTF-8"):
        read_people(path, "gender", NAMES)
    with pytest.raises(DdmError, match="cannot be read"):
        read_people(tmp_path / "none.csv", "gender", NAMES)


def test_kappa_is_scikit_learns(write) -> None:
    rng = np.random.default_rng(0)
    a = rng.choice(["x", "y", "z"], 200)
    b = np.where(rng.random(200) < 0.7, a, rng.choice(["x", "y", "z"], 200))
    names = tuple(f"{i}.png" for i in range(200))
    rows = [f"{names[i]},{labels[i]},{who}" for who, labels in (("p", a), ("q", b)) for i in range(200)]
    (found,) = agreements("g", read_people(write("\n".join(["image,label,rater", *rows])), "g", names), seed=0)
    assert found.kappa == pytest.approx(cohen_kappa_score(a, b), abs=STATISTIC_ABS)
    assert found.interval[0] < found.kappa < found.interval[1]
    assert (found.n, found.agreed) == (200, pytest.approx((a == b).mean()))
    draws = [cohen_kappa_score(a[i], b[i]) for i in (rng.integers(0, 200, 200) for _ in range(300))]
    assert np.allclose(found.interval, np.quantile(draws, [0.025, 0.975]), atol=0.03)


def test_raters_who_never_differ_are_not_sure_for_ever(write) -> None:
    rows = [f"{name},{label},{who}" for who in "pq" for name, label in zip(NAMES, "xyxy", strict=True)]
    people = read_people(write("\n".join(["image,label,rater", *rows])), "g", NAMES)
    (found,) = agreements("g", people, seed=0)
    assert (found.kappa, found.interval) == (1, pytest.approx((1 - (1 - wilson(4, 4)[0]) / 0.5, 1)))
    (fewer,) = agreements("g", people, [0, 1], seed=0)
    assert (fewer.n, fewer.interval[0] < found.interval[0]) == (2, True)
    (one,) = agreements("g", people, [0, 2], seed=0)
    assert (one.n, one.kappa, one.interval) == (2, None, None)


def test_raters_who_always_differ_alike(write) -> None:
    rows = [f"{name},{label},{who}" for who, label in (("p", "x"), ("q", "y")) for name in NAMES]
    (found,) = agreements("g", read_people(write("\n".join(["image,label,rater", *rows])), "g", NAMES), seed=0)
    assert (found.kappa, found.interval) == (0, None)
    assert "the same two labels" in found.reason


def test_kappa_of_one_label_or_no_common_image(write) -> None:
    assert np.isnan(kappa(np.array([[[5.0, 0], [0, 0]]]))).all()
    same = read_people(write("image,label,rater\n0.png,x,p\n0.png,x,q\n"), "g", NAMES)
    assert "the same label" in agreements("g", same, seed=0)[0].reason
    apart = read_people(write("image,label,rater\n0.png,x,p\n2.png,y,q\n"), "g", NAMES)
    (found,) = agreements("g", apart, seed=0)
    assert (found.n, found.kappa, found.reason) == (0, None, "no image has labels of both")
