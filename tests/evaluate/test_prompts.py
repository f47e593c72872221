"""Comparing and evaluating bundles that take prompts: both sides have the same, and what can't have any is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import brightness_judge
import numpy as np
import pytest
from PIL import Image

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError
from ddm_rt.evaluate import run
from ddm_rt.evaluate.comparison import compare as room
from ddm_rt.evaluate.comparison.compare import compare
from ddm_rt.evaluate.comparison.sides import Side, parse_side
from ddm_rt.evaluate.judge import Judge
from ddm_rt.sample.pipeline import Pipeline

PROMPTS = ["a doctor", "a nurse", ""]
GROUPS = ("dark", "light")


@pytest.fixture(scope="module")
def bundle(latent_bundles: Mapping[str, Bundle]) -> Bundle:
    return latent_bundles["sd15"]


@pytest.fixture(scope="module")
def judge_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of 64x64 pixels whose groups the bundle's random images are on both sides of."""
    return brightness_judge.write(
        tmp_path_factory.mktemp("judge") / "judge.onnx", shape=("B", 3, 64, 64), confusion=None, middle=-0.07
    )


@pytest.fixture(scope="module")
def judge(judge_file: Path) -> Judge:
    return Judge.load(str(judge_file))


def side(bundle: Bundle, **settings: Any) -> Side:
    text = ",".join(f"{key}={value}" for key, value in ({"steps": 2, "threads": 1} | settings).items())
    return parse_side(f"{bundle.path}@{text}")


def test_both_sides_get_the_prompts(bundle: Bundle, judge: Judge) -> None:
    text: dict[str, Any] = {"prompt": PROMPTS, "negative_prompt": "blurry", "guidance_scale": 5.0}
    arguments: dict[str, Any] = {"judge": judge, "groups": GROUPS, "n": 6, "rounds": 1, "timed": 1}
    figures, (images, _) = compare(side(bundle), side(bundle), **arguments, text=text)
    assert figures.images.unchanged == 6
    for facts in (figures.a, figures.b):
        assert (facts.prompt, facts.negative_prompt, facts.guidance_scale) == (tuple(PROMPTS), "blurry", 5.0)
    assert figures.speed is not None
    expected = Pipeline.load(bundle, threads=1).generate(n=6, num_steps=2, **text)
    np.testing.assert_array_equal(images, expected.images)
    figures, _ = compare(side(bundle), side(bundle, text_guidance=2), **arguments | {"rounds": 0}, text=text)
    assert (figures.a.guidance_scale, figures.b.guidance_scale) == (5.0, 2.0)
    assert figures.images.unchanged < 6


def test_a_sampled_directory_brings_its_prompts(bundle: Bundle, judge: Judge, tmp_path: Path) -> None:
    pipeline = Pipeline.load(bundle, threads=1)
    request: dict[str, Any] = {"n": 5, "seed": 3, "num_steps": 2, "negative_prompt": "blurry"}
    made = pipeline.generate(PROMPTS, **request)
    made.save(tmp_path / "there")
    arguments: dict[str, Any] = {"judge": judge, "groups": GROUPS}
    there = parse_side(str(tmp_path / "there"))
    for sides in ((there, side(bundle)), (side(bundle), there)):
        figures, _ = compare(*sides, **arguments)
        assert (figures.labels.n, figures.images.unchanged) == (5, 5)
    pipeline.generate("a nurse", codes=made.codes, **request).save(tmp_path / "others")
    with pytest.raises(DdmError, match="image 0 has prompt a doctor and a nurse; pairs need the same"):
        compare(there, parse_side(str(tmp_path / "others")), **arguments)
    with pytest.raises(
        DdmError, match=r"prompt is given, but .* holds images, made already, with prompts of their own"
    ):
        compare(side(bundle), there, text={"prompt": "a nurse"}, **arguments)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ({"prompt": "a nurse"}, "prompt is given; bundle 'tiny' is prompt-free"),
        ({"negative_prompt": "blurry"}, "negative_prompt is given; bundle 'tiny' is prompt-free"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0; bundle 'tiny' is prompt-free"),
    ],
)
def test_text_for_a_prompt_free_bundle_is_refused_before_sampling(
    tiny_bundle: Bundle,
    judge: Judge,
    judge_file: Path,
    text: dict[str, Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _forbid_sampling(monkeypatch)
    with pytest.raises(DdmError, match=said):
        compare(side(tiny_bundle), side(tiny_bundle), judge=judge, groups=GROUPS, reference=None, text=text)
    with pytest.raises(DdmError, match=said):
        _evaluate([tiny_bundle.path], tmp_path, judge_file, **text)
    with pytest.raises(DdmError, match=f"{next(iter(text))} is given, but no bundle to generate with it"):
        _evaluate([tmp_path], tmp_path, judge_file, **text)


def test_bad_text_is_refused_before_sampling(
    bundle: Bundle, judge: Judge, judge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _forbid_sampling(monkeypatch)
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"guidance_scale": float("nan")}, "guidance_scale is nan; expected a finite number"),
        ({"prompt": "\ud800"}, "expected Unicode text"),
    )
    for text, said in cases:
        with pytest.raises(DdmError, match=said):
            compare(side(bundle), side(bundle), judge=judge, groups=GROUPS, reference=None, text=text)
        with pytest.raises(DdmError, match=said):
            _evaluate([bundle.path], tmp_path, judge_file, **text)
    with pytest.raises(DdmError, match=r"guidance_scale is -1\.0"):
        compare(side(bundle), side(bundle, text_guidance=-1), judge=judge, groups=GROUPS, reference=None)


def test_bundles_generate_with_the_prompts_and_the_report_says_so(
    bundle: Bundle, judge_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def generate(self: Pipeline, *, n: int, seed: int, on_step: object, **text: Any) -> Any:
        asked.append(text)
        light = np.arange(n) % 2 == 0
        images = np.where(light[:, None, None, None], 250, 5) + np.zeros((n, 64, 64, 3), np.int64)
        return SimpleNamespace(images=images.astype(np.uint8), codes=(0,) * n)

    monkeypatch.setattr(Pipeline, "generate", generate)
    text: dict[str, Any] = {"prompt": PROMPTS, "negative_prompt": "blurry", "guidance_scale": 5.0}
    _evaluate([bundle.path], tmp_path, judge_file, **text)
    assert asked == [text]
    told = json.loads((tmp_path / "report" / "report.json").read_bytes())["provenance"]
    assert {name: told[name] for name in text} == text


def _forbid_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def sampling(*arguments: object, **rest: object) -> None:
        raise AssertionError("minutes of sampling, for nothing")

    monkeypatch.setattr(room, "make_side", sampling)
    monkeypatch.setattr(run, "generate_until", sampling)


def _evaluate(paths: list[Path], tmp_path: Path, judge_file: Path, **text: Any) -> None:
    real = tmp_path / "real"
    if not real.exists():
        _write_real(real)
    run.evaluate_methods(
        [(path.name, path) for path in paths],
        tmp_path / "report",
        judge=str(judge_file),
        classes=None,
        groups=GROUPS,
        reference=str(real),
        training=None,
        n=40,
        seed=0,
        min_per_group=12,
        text=text,
    )


def _write_real(folder: Path, count: int = 40) -> None:
    """Dark and light images with their labels."""
    folder.mkdir()
    rows = ["file_name,label"]
    for i in range(count):
        Image.fromarray(np.full((64, 64, 3), 230 if i % 2 else 20, np.uint8)).save(folder / f"{i}.png")
        rows.append(f"{i}.png,{GROUPS[i % 2]}")
    (folder / "metadata.csv").write_text("\n".join(rows))
