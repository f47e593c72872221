"""Comparisons end to end: what is refused before sampling, figures of known changes, and one real planted drift."""

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from fake_engine import FakeEngine, fake_bundle
from onnx import numpy_helper
from rich.console import Console
from tolerances import STATISTIC_ABS

from ddm_rt.bundle import Bundle, write_bundle
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison import compare as room
from ddm_rt.evaluate.comparison.compare import Comparison, compare, image_change, quality_changes
from ddm_rt.evaluate.comparison.paired import Decision
from ddm_rt.evaluate.comparison.sides import parse_side
from ddm_rt.evaluate.judge import Judge, Verdicts
from ddm_rt.evaluate.quality import frechet, kid
from ddm_rt.evaluate.report import comparison_page
from ddm_rt.sample.pipeline import Pipeline

DIGITS = "digits@steps=4,threads=1"


def lose_codes(bundle: Bundle, out: Path, lost: tuple[int, ...]) -> Bundle:
    """A copy whose conditioner answers `lost` codes as code 0: a fault that a wrong conversion could make."""

    def fill(folder: Path) -> None:
        for name in bundle.index.files:
            shutil.copy(bundle.path / name, folder / name)
        model = onnx.load(folder / "conditioner.onnx")
        tables = {
            tensor.name.split(".")[-2]: tensor for tensor in model.graph.initializer if "code.weight" in tensor.name
        }
        code, top = (numpy_helper.to_array(tables[name]).copy() for name in ("code", "top_code"))
        top_of = bundle.codes.top_of
        for k in lost:  # the two are added up
            code[k] = code[0] + top[top_of[0]] - top[top_of[k]]
        tables["code"].CopyFrom(numpy_helper.from_array(code, tables["code"].name))
        onnx.save(model, folder / "conditioner.onnx")

    return write_bundle(out, fill, bundle.index.provenance)


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load("digits")


@pytest.fixture(scope="module")
def planted(judge: Judge, tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, comparison_page.Pictures]:
    """The shipped digits, and a copy that lost one of the codes of its second branch (4 steps, 200 pairs)."""
    bundle = Bundle.load("digits")
    top, share = bundle.codes.top_of, [leaf.share_in_top for leaf in bundle.codes.leaves]
    lost = min((k for k, branch in enumerate(top) if branch != top[0]), key=lambda k: abs(share[k] - 0.2))
    path = lose_codes(bundle, tmp_path_factory.mktemp("planted") / "faulty", (lost,)).path
    sides = parse_side(DIGITS), parse_side(f"{path}@steps=4,threads=1")
    return compare(*sides, judge=judge, groups=("3", "8"), reference="digits:3,8", n=200, rounds=1, timed=2)


def test_a_lost_code_is_caught(planted: tuple[Comparison, comparison_page.Pictures]) -> None:
    figures, _ = planted
    assert figures.labels.decision is Decision.DRIFT
    assert figures.labels.test.p < 1e-4
    changes = {change.group: change for change in figures.labels.changes}
    three, eight = changes["3"], changes["8"]
    assert three.interval[0] > figures.labels.margin
    assert eight.interval[1] < -figures.labels.margin
    # Images of the other codes are the same in every byte: nothing but that code's images changed.
    assert figures.labels.n - figures.images.unchanged >= figures.labels.flips
    assert figures.images.unchanged > 0.85 * figures.labels.n
    assert figures.speed is not None
    assert figures.a.bundle_id != figures.b.bundle_id


def test_the_same_again_is_equivalent(judge: Judge) -> None:
    figures, (a, b) = compare(
        parse_side(DIGITS), parse_side(DIGITS), judge=judge, groups=("3", "8"), n=100, rounds=0, reference=None
    )
    assert figures.labels.decision is Decision.EQUIVALENT
    assert (figures.labels.flips, figures.images.unchanged, figures.images.psnr_db) == (0, 100, None)
    assert (figures.quality, figures.speed) == ((), None)
    assert (a == b).all()


def test_images_made_elsewhere_are_compared(judge: Judge, tmp_path: Path) -> None:
    """A directory on either side sets n, seed and codes of the other."""
    pipeline = Pipeline.load("digits", threads=1)
    codes = [0, 3, 2, 9] * 5
    pipeline.generate(n=20, seed=9, codes=codes, num_steps=4).save(tmp_path / "there")
    there, here = parse_side(str(tmp_path / "there")), parse_side(DIGITS)
    for sides in ((there, here), (here, there), (there, there)):
        figures, _ = compare(*sides, judge=judge, groups=("3", "8"), n=7, rounds=1)
        assert (figures.labels.n, figures.images.unchanged, figures.speed, figures.seed) == (20, 20, None, None)
        assert figures.a.num_steps == figures.b.num_steps == 4
    pipeline.generate(n=20, seed=9, codes=[0, 3, 2, 8] * 5, num_steps=4).save(tmp_path / "codes")
    pipeline.generate(n=20, seed=8, codes=codes, num_steps=4).save(tmp_path / "seeds")
    for name, said in (("codes", "image 3 has code 9 and 8"), ("seeds", "image 0 has seed 9 and 8")):
        with pytest.raises(DdmError, match=said):
            compare(there, parse_side(str(tmp_path / name)), judge=judge, groups=("3", "8"))


def test_page_table_and_json_say_the_same(planted: tuple[Comparison, comparison_page.Pictures], tmp_path: Path) -> None:
    figures, pictures = planted
    path = comparison_page.write(figures, pictures, tmp_path / "out")
    assert sorted(file.name for file in path.parent.iterdir()) == ["compare.json", "index.html"]
    assert Comparison.model_validate_json((tmp_path / "out" / "compare.json").read_bytes()) == figures
    assert json.loads((tmp_path / "out" / "compare.json").read_bytes())["labels"]["decision"] == 1
    page = path.read_text()
    for said in ("has drifted from", "McNemar, exact", "Frechet", "What this does not say", figures.b.bundle_id):
        assert said in page
    (before, after), (low, high) = figures.quality[0].frechet, figures.quality[0].frechet_change
    assert f"<td>{after - before:+.2f}<small>[{low:+.2f}, {high:+.2f}]</small>" in page
    console = Console(width=80, record=True, file=io.StringIO())
    for table in comparison_page.terminal_tables(figures):
        console.print(table)
    text = console.export_text()
    change = figures.labels.changes[0]
    assert f"{change.difference:+.3f} [{change.interval[0]:+.3f}, {change.interval[1]:+.3f}]" in text
    assert f"{before:.2f}" in text
    assert f"{after:.2f}" in text
    with pytest.raises(DdmError, match="not an empty directory"):
        comparison_page.write(figures, pictures, tmp_path / "out")


def test_a_comparison_that_converts_nothing_needs_no_onnx() -> None:
    code = "import sys; sys.modules['onnx'] = None; import ddm_rt.workflows.compare"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0


def test_a_label_is_text_on_the_page(planted: tuple[Comparison, comparison_page.Pictures], tmp_path: Path) -> None:
    figures, pictures = planted
    nasty = figures.model_copy(update={"a": figures.a.model_copy(update={"label": "<script>[b]$x$"})})
    assert "<script>" not in comparison_page.write(nasty, pictures, tmp_path / "out").read_text(encoding="utf-8")


def test_undecided_says_how_many_more(judge: Judge) -> None:
    figures, _ = compare(parse_side(DIGITS), parse_side(DIGITS), judge=judge, groups=("3", "8"), n=20, rounds=0)
    assert figures.labels.decision is Decision.UNDECIDED
    assert "About 68 more images would decide: -n 88, with another --seed." in comparison_page.sentence(figures)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"groups": ("3", "5")}, "groups: 5 unknown to the judge; its classes: 0, 1, 3, 7, 8"),
        ({"groups": ("3",)}, "two or more different ones"),
        ({"margin": 1.5}, "margin is 1.5"),
        ({"reference": "nowhere"}, "no such folder"),
        ({"reference": "digits:0,1"}, "images of each of 3, 8 are needed"),
        ({"side_b": "nowhere"}, "nowhere"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_sampling(
    change: dict, said: str, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampling(*arguments: object, **rest: object) -> None:
        raise AssertionError("minutes of sampling, for nothing")

    monkeypatch.setattr(room, "make_side", sampling)
    sides = {"side_a": DIGITS, "side_b": DIGITS}
    arguments = {"judge": judge, "groups": ("3", "8")} | change
    for name, text in sides.items():
        arguments[name] = parse_side(str(arguments.get(name, text)))
    with pytest.raises(DdmError, match=said):
        compare(**arguments)


def test_bundles_with_other_codes_are_no_pairs(judge: Judge, tmp_path: Path) -> None:
    bundle = Bundle.load("digits")

    def fill(folder: Path) -> None:
        for name in bundle.index.files:
            shutil.copy(bundle.path / name, folder / name)
        first, *others = bundle.config.codes
        bundle.write_settings(folder, codes=(first.model_copy(update={"size": first.size + 1}), *others))

    other = write_bundle(tmp_path / "other", fill, bundle.index.provenance)
    sides = parse_side(DIGITS), parse_side(str(other.path))
    with pytest.raises(DdmError, match=r"have different codes, so their images are no pairs; `ddm-rt evaluate`"):
        compare(*sides, judge=judge, groups=("3", "8"))


def test_image_change_by_hand() -> None:
    a = np.zeros((2, 1, 2, 3), np.uint8)
    b = a.copy()
    b[0, 0, 0] = (1, 2, 255)
    found = image_change(a, b)
    assert found.mean == pytest.approx(258 / 12, abs=STATISTIC_ABS)
    assert (found.largest, found.unchanged) == (255, 1)
    assert found.off_by_more_than_one == pytest.approx(2 / 12, abs=STATISTIC_ABS)
    assert found.psnr_db == pytest.approx(10 * np.log10(255**2 / ((1 + 4 + 255**2) / 12)), abs=STATISTIC_ABS)


def verdicts(features: np.ndarray, names: list[str]) -> Verdicts:
    return Verdicts(np.array(names), np.zeros((len(names), 2), np.float32), features.astype(np.float32))


def test_quality_changes_are_of_equal_n_and_cover_what_they_should() -> None:
    rng = np.random.default_rng(0)
    names, real_names, codes = ["x"] * 130 + ["y"] * 70, ["x", "y"] * 100, [0] * 200
    real = verdicts(rng.normal(size=(200, 3)), real_names)
    base = rng.normal(size=(200, 3))
    a, b = verdicts(base, names), verdicts(base + np.array([0.0, 0.0, 2.0]), ["x"] * 100 + ["y"] * 100)
    rows = {row.group: row for row in quality_changes((a, b), codes, real, real_names, ("x", "y"))}
    assert {name: row.n for name, row in rows.items()} == {"all": 200, "x": 100, "y": 70}
    assert rows["all"].frechet[0] == pytest.approx(frechet(a.features, real.features), abs=STATISTIC_ABS)
    low, high = rows["all"].frechet_change
    # Both means by hand: covariances are the same, so only the shift counts.
    means = [side.features.astype(np.float64).mean(axis=0) - real.features.mean(axis=0) for side in (a, b)]
    assert low < means[1] @ means[1] - means[0] @ means[0] < high
    low, high = rows["all"].kid_change
    before, after = (kid(side.features, real.features) for side in (a, b))
    assert low < after - before < high
    same = quality_changes((a, a), codes, real, real_names, ("x", "y"))
    assert all(row.frechet_change == (0, 0) for row in same)
    few = quality_changes((verdicts(base, ["x"] * 195 + ["y"] * 5), a), codes, real, real_names, ("x", "y"))[2]
    assert (few.n, few.frechet) == (5, None)
    assert "5 images of y" in few.reason


@pytest.mark.slow(reason="a simulation of hundreds of comparisons")
def test_the_quality_interval_covers() -> None:
    """Pairs that share most of their noise: the interval of the change in Frechet distance holds its mean."""
    rng = np.random.default_rng(1)
    real = verdicts(rng.normal(size=(300, 2)), ["x"] * 300)
    found = []
    for _ in range(100):
        base = rng.normal(size=(120, 2))
        other = base + 0.3 * rng.normal(size=(120, 2)) + np.array([0.4, 0.0])
        sides = verdicts(base, ["x"] * 120), verdicts(other, ["x"] * 120)
        row = quality_changes(sides, [0, 1] * 60, real, ["x"] * 300, ())[0]
        found.append((row.frechet[1] - row.frechet[0], *row.frechet_change))
    changes = np.array(found)
    truth = changes[:, 0].mean()
    assert ((changes[:, 1] <= truth) & (truth <= changes[:, 2])).mean() > 0.9


def test_sides_of_other_sizes_are_no_pairs(judge: Judge, tmp_path: Path) -> None:
    small = Pipeline(fake_bundle(), FakeEngine())
    for n, name in ((4, "a"), (5, "b")):
        small.generate(n=n).save(tmp_path / name)
    with pytest.raises(DdmError, match="images are 4 of 8x8 and 5 of 8x8; expected as many of the same size"):
        compare(parse_side(str(tmp_path / "a")), parse_side(str(tmp_path / "b")), judge=judge, groups=("3", "8"))
