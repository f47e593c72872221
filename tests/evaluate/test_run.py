"""From bundles or directories to figures: how much is generated, what is read, and what is refused before that."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pictures import write_folder

from ddm_rt.config import DataConfig
from ddm_rt.errors import DdmError
from ddm_rt.evaluate import run
from ddm_rt.evaluate.judge import Judge
from ddm_rt.presets import resolve
from ddm_rt.runtime import Codes, Leaf
from ddm_rt.sample.generation import Generation

GROUPS = ("dark", "light")


class Painter:
    """Stands for a pipeline: image i of a request is light where `light(seed, i)`, and has the code of its kind."""

    def __init__(self, light: Callable[[int, int], bool], codes: bool = True) -> None:
        self.light, self.codes, self.requests = light, codes, []

    def generate(self, n: int, seed: int, on_step: object = None) -> Any:
        self.requests.append((n, seed))
        kinds = np.array([self.light(seed, i) for i in range(n)])
        images = np.where(kinds[:, None, None, None], 250, 5) + np.zeros((n, 8, 8, 3), np.int64)
        return SimpleNamespace(
            images=images.astype(np.uint8), codes=tuple(kinds.astype(int) if self.codes else [-1] * n)
        )


@pytest.fixture
def judge(write_judge: Callable[..., Path]) -> Judge:
    return Judge.load(write_judge())


def test_one_request_is_enough_where_each_group_is_reached(judge: Judge) -> None:
    painter = Painter(lambda seed, i: i % 2 == 0)
    sampled = run.generate_until(painter, judge, GROUPS, n=20, seed=7, min_per_group=10)
    assert painter.requests == [(20, 7)]
    assert sampled.images.shape == (20, 8, 8, 3)
    assert sampled.codes is not None
    assert sampled.codes.tolist() == [1, 0] * 10


def test_more_is_generated_until_the_rarer_group_is_reached_and_the_first_n_stay(judge: Judge) -> None:
    painter = Painter(lambda seed, i: i < 3)
    sampled = run.generate_until(painter, judge, GROUPS, n=20, seed=7, min_per_group=10)
    assert painter.requests == [(20, 7), (20, 8), (20, 9), (20, 10)], "each request has a seed of its own"
    once = run.generate_until(Painter(lambda seed, i: i < 3), judge, GROUPS, n=20, seed=7, min_per_group=1)
    assert (sampled.images[:20] == once.images).all()


def test_a_group_that_hardly_comes_up_ends_the_search(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_IMAGES", 200)
    never = Painter(lambda seed, i: False)
    run.generate_until(never, judge, GROUPS, n=20, seed=0, min_per_group=5)
    assert len(never.requests) == 3, "hopeless after three requests"
    rare = Painter(lambda seed, i: i < 1)
    run.generate_until(rare, judge, GROUPS, n=20, seed=0, min_per_group=10)
    assert len(rare.requests) == 10, "up to MAX_IMAGES where that may do"


def test_null_codes_are_no_codes(judge: Judge) -> None:
    painter = Painter(lambda seed, i: i % 2 == 0, codes=False)
    assert run.generate_until(painter, judge, GROUPS, n=4, seed=0, min_per_group=1).codes is None


def save(folder: Path, codes: Sequence[int], size: tuple[int, int] = (8, 8)) -> Generation:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(codes), *size, 3), np.uint8)
    records = [{"file": f"{i:05d}.png", "code": code} for i, code in enumerate(codes)]
    generation = Generation(images, tuple(codes), {"request": {}, "images": records})
    generation.save(folder)
    return generation


@pytest.mark.parametrize("codes", [(0, 1, 1, 0), (-1, -1, -1)])
def test_a_sampled_directory_is_read_back(tmp_path: Path, codes: tuple[int, ...]) -> None:
    generation = save(tmp_path / "out", codes)
    sampled = run.read_sampled(tmp_path / "out")
    assert (sampled.images == generation.images).all()
    assert (sampled.codes is None) == (set(codes) == {-1})
    assert sampled.codes is None or tuple(sampled.codes) == codes


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"images": [{"file": "a.png"}]}', '{"images": 3}', "\xff"])
def test_a_damaged_manifest_is_named(tmp_path: Path, manifest: str) -> None:
    (tmp_path / "manifest.json").write_bytes(manifest.encode("latin-1"))
    with pytest.raises(DdmError, match=r"manifest\.json: expected the manifest"):
        run.read_sampled(tmp_path)


def test_an_empty_manifest_and_images_of_several_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"images": []}')
    with pytest.raises(DdmError, match="images is empty"):
        run.read_sampled(tmp_path)
    save(tmp_path / "out", (0, 0))
    save(tmp_path / "big", (0, 0), (8, 12))
    shutil.copy(tmp_path / "big" / "00001.png", tmp_path / "out" / "00001.png")
    with pytest.raises(DdmError, match=r"00001\.png"):
        run.read_sampled(tmp_path / "out")


def test_a_manifest_reads_nothing_outside_its_directory(tmp_path: Path) -> None:
    save(tmp_path / "out", (0, 0))
    (tmp_path / "out" / "00000.png").rename(tmp_path / "00000.png")
    text = (tmp_path / "out" / "manifest.json").read_text().replace("00000.png", "../00000.png")
    (tmp_path / "out" / "manifest.json").write_text(text)
    with pytest.raises(DdmError, match=r"00000\.png: not a readable image"):
        run.read_sampled(tmp_path / "out")


def test_real_images_need_labels(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 4)
    config = DataConfig(image_size=16)
    real = run.labelled(str(folder), "reference", config)
    assert real.images.shape == (4, 16, 16, 3)
    assert list(real.labels) == ["across", "across", "across", "down"]
    (folder / "metadata.csv").unlink()
    with pytest.raises(DdmError, match="labels are needed"):
        run.labelled(str(folder), "reference", config)


def with_exemplars(source: Path, images: int) -> Any:
    """A bundle as far as `code_cards` looks."""
    leaves = (
        Leaf(code=0, top_code=0, size=images - 2, share_in_top=1.0),
        Leaf(code=1, top_code=1, size=2, share_in_top=1.0),
    )
    codes = Codes(origin="discovered", leaves=leaves, exemplars=((0, 2), (3,)))
    training = SimpleNamespace(discovery=codes, run=resolve("tiny", {"data.source": str(source)}))
    return SimpleNamespace(codes=codes, training=training)


def test_codes_are_shown_with_their_exemplars_where_the_training_images_are_here(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", 6)
    cards = run.code_cards(with_exemplars(folder, 6))
    assert [(card.code, card.top_code, card.size, card.exemplars.shape) for card in cards] == [
        (0, 0, 4, (2, 16, 16, 3)),
        (1, 1, 2, (1, 16, 16, 3)),
    ]
    assert run.code_cards(with_exemplars(folder, 7)) == [], "the folder has changed: its numbers mean other images"
    shutil.rmtree(folder)
    assert run.code_cards(with_exemplars(folder, 6)) == [], "evaluated on another machine"


def evaluate(method: Path, tmp_path: Path, judge_file: Path, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "judge": str(judge_file),
        "classes": None,
        "groups": GROUPS,
        "reference": str(tmp_path / "real"),
        "training": None,
        "n": 4,
        "seed": 0,
        "min_per_group": 1,
    }
    return run.evaluate_methods([("method", method)], tmp_path / "report", **(arguments | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"groups": ("dark", "grey")}, "grey is unknown to the judge; its classes: dark, light"),
        ({"groups": ("dark",)}, "two or more different classes"),
        ({"groups": ("dark", "dark")}, "two or more different classes"),
        ({"reference": "nowhere"}, "no such folder"),
        ({"training": "nowhere"}, "no such folder"),
        ({"judge": "nowhere"}, "no such file"),
        ({"attributes": ("hue",)}, "attribute 'hue'"),
        ({"asked": "0=dark"}, "asked '0=dark'"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_sampled(
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    write_judge: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sampling(*arguments: object, **rest: object) -> None:
        raise AssertionError("minutes of sampling, for nothing")

    write_folder(tmp_path / "real", 8)
    bundle = SimpleNamespace(training=SimpleNamespace(run=resolve("tiny")))
    monkeypatch.setattr(run.Pipeline, "load", lambda path: SimpleNamespace(bundle=bundle))
    monkeypatch.setattr(run, "generate_until", sampling)
    with pytest.raises(DdmError, match=said):
        evaluate(tmp_path / "shipped", tmp_path, write_judge(), **changes)
    assert not (tmp_path / "report").exists()


def test_asked_groups_are_those_of_the_top_codes() -> None:
    asked = run.parse_asked("code:0=dark, code:1=light")
    assert asked == {0: "dark", 1: "light"}
    assert run.conditions(asked, [1, 0, 0], GROUPS) == ["light", "dark", "dark"]
    with pytest.raises(DdmError, match=r"top codes \[-1, 2\]"):
        run.conditions(asked, [2, -1, 0], GROUPS)
    with pytest.raises(DdmError, match="asked: grey; expected groups among dark, light"):
        run.conditions({0: "grey"}, [0], GROUPS)
    for text in ("", "code:0", "code:x=dark", "code:-1=dark", "top:0=dark", "code:0=dark,code:0=light"):
        with pytest.raises(DdmError, match="asked"):
            run.parse_asked(text)


def test_conditional_use_is_measured(tmp_path: Path, write_judge: Callable[..., Path]) -> None:
    """All of the first top code and half of the second are what was asked: SPD is a half."""
    write_folder(tmp_path / "real", 40)
    judge_file = write_judge(classes=("across", "down"), confusion=None, shape=("B", 1, 16, 16))
    light = np.arange(24) >= 18  # the judge of brightness calls it "down"
    images = np.where(light[:, None, None, None], 250, 5).astype(np.uint8) + np.zeros((24, 16, 16, 3), np.uint8)
    records = [{"file": f"{i:05d}.png", "code": i // 12, "top_code": i // 12} for i in range(24)]
    Generation(images, (0,) * 12 + (1,) * 12, {"request": {}, "images": records}).save(tmp_path / "out")
    changes = {"groups": ("across", "down"), "asked": "code:0=across,code:1=down", "min_per_group": 6}
    evaluate(tmp_path / "out", tmp_path, judge_file, **changes)
    found = json.loads((tmp_path / "report" / "report.json").read_bytes())["methods"][0]["evaluation"]
    assert found["spd"] == 0.5
    assert 0 < found["spd_interval"][0] < 0.5 < found["spd_interval"][1] < 1


def test_an_occupied_report_directory_is_left_alone(tmp_path: Path, write_judge: Callable[..., Path]) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("last year's")
    with pytest.raises(DdmError, match="not an empty directory"):
        evaluate(tmp_path / "out", tmp_path, write_judge())
    assert (tmp_path / "report" / "index.html").read_text() == "last year's"
