"""What a side's specification means, and what is refused; images that were made elsewhere."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine, fake_bundle
from hypothesis import example, given
from hypothesis import strategies as st

from ddm_rt.config import Precision
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.sides import Side, make_side, open_side, parse_side, read_side, seconds_of_requests
from ddm_rt.sample.pipeline import Pipeline


def test_a_specification_is_read() -> None:
    found = parse_side("a@b/c@steps=4, sampler=euler,guidance=0.5,backend=torch,threads=2")
    settings = {"num_steps": 4, "sampler": "euler", "indicator_guidance_scale": 0.5}
    assert (found.source, found.settings, found.backend, found.threads) == ("a@b/c", settings, "torch", 2)
    assert parse_side("a@device=cuda:1").device == "cuda:1"
    assert parse_side("a@device=cuda").device == "cuda:0"
    half = parse_side("sd@precision=fp16,text_guidance=5")
    assert (half.precision, half.settings) == (Precision.FP16, {"guidance_scale": 5.0})
    assert parse_side("sd@precision=fp32,backend=torch").precision is Precision.FP32
    options = parse_side("sd@interval=.2:.8,apg=15:0,cads=.25:.6:.9").settings
    assert options == {"guidance_interval": (0.2, 0.8), "apg": (15, 0), "cads": (0.25, 0.6, 0.9)}
    assert parse_side("digits@cache=5").settings == {"cache": "5"}
    assert parse_side("digits", 3) == Side(text="digits", source="digits", threads=3)
    assert parse_side("digits@steps=8", 3).threads == 3


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run@steps=4").mkdir()
    monkeypatch.chdir(tmp_path)
    assert parse_side("run@steps=4").source == "run@steps=4"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "digits@stepz=4",
            "expected KEY=VALUE with KEY one of: steps, sampler, guidance, text_guidance, interval",
        ),
        ("digits@steps", "'steps'; expected KEY=VALUE"),
        ("digits@", "''; expected KEY=VALUE"),
        ("digits@steps=four", "steps is 'four'; expected a whole number"),
        ("digits@sampler=heun", "sampler is 'heun'; expected one of ddpm, ddim"),
        ("digits@backend=jax", "backend is 'jax'; expected one of auto, torch"),
        ("digits@device=gpu", "device is 'gpu'; expected cpu, cuda, or cuda:N"),
        ("digits@precision=fp12", "precision is 'fp12'; expected one of fp32, fp16, bf16, int8, fp8"),
        ("digits@precision=int8,backend=torch", "precision is int8; backend torch computes in fp32, bf16, fp16"),
        ("digits@text_guidance=much", "text_guidance is 'much'; expected a number"),
        ("digits@interval=.2", "interval is '.2'; expected START:STOP, fractions of the steps"),
        ("digits@cads=.2:x:.9", "cads is '.2:x:.9'; expected SCALE:END:BEGIN"),
        ("digits@steps=4,steps=4", "steps is given twice"),
        ("@steps=4", "expected a bundle or a sampled directory before the @"),
    ],
)
def test_a_wrong_specification_is_refused(text: str, said: str) -> None:
    with pytest.raises(DdmError, match=f".*{said}"):
        parse_side(text)


@given(st.text(max_size=30))
@example("x@steps=" + "9" * 5000)
@example("\0@steps=4")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        side = parse_side(text)
    except DdmError:
        return
    assert text.startswith(side.source)


def test_images_made_here_and_read_again_are_the_same(tmp_path: Path) -> None:
    pipeline = Pipeline(fake_bundle(), FakeEngine())
    side = Side(text="fake@steps=3", source="fake", settings={"num_steps": 3})
    made = make_side(side, pipeline, 6, 5)
    pipeline.generate(n=6, seed=5, num_steps=3).save(tmp_path / "out")
    found = read_side(parse_side(str(tmp_path / "out")))
    assert (found.images == made.images).all()
    assert (found.seed, found.seeds, found.codes) == (made.seed, made.seeds, made.codes) == (5, *made[2:4])
    assert found.prompts == made.prompts == (None,) * 6
    assert made.facts.num_steps == 3
    assert found.facts.model_dump(exclude={"label", "bundle"}) == made.facts.model_dump(exclude={"label", "bundle"})
    assert made.facts.label == "fake@steps=3"


def test_settings_of_images_made_already_are_refused(tmp_path: Path) -> None:
    for text in (f"{tmp_path}@steps=4", f"{tmp_path}@backend=torch", f"{tmp_path}@precision=fp16"):
        with pytest.raises(DdmError, match="holds images, made already; settings belong to a bundle"):
            open_side(parse_side(text))
    with pytest.raises(DdmError, match=r"manifest\.json: cannot be read"):
        read_side(parse_side(str(tmp_path)))


def test_no_bundle_is_converted_behind_ones_back() -> None:
    with pytest.raises(DdmError, match=r"is fp32, not int8; fp32 bundles alone are converted, by `ddm-rt export`"):
        open_side(parse_side("digits@precision=int8"))
    assert open_side(parse_side("digits@precision=fp32", 1)) is not None


def test_a_side_s_own_settings_come_before_those_of_both() -> None:
    side = Side(text="fake@steps=3", source="fake", settings={"num_steps": 3})
    made = make_side(side, Pipeline(fake_bundle(), FakeEngine()), 1, 0, asked={"num_steps": 5, "sampler": "ddpm"})
    assert (made.facts.num_steps, made.facts.sampler) == (3, "ddpm")


def test_timing_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, object]] = []
    now = 0.0

    class Timed:
        def __init__(self, name: str, seconds: float) -> None:
            self.name, self.seconds = name, seconds

        def generate(self, **settings: object) -> None:
            nonlocal now
            now += self.seconds
            order.append((self.name, settings["num_steps"]))

    monkeypatch.setattr("ddm_rt.evaluate.comparison.sides.time", SimpleNamespace(perf_counter=lambda: now))
    slow, fast = Side(text="a", source="a", settings={"num_steps": 9}), Side(text="b", source="b")
    taken = seconds_of_requests([(slow, Timed("a", 2.0)), (fast, Timed("b", 1.0))], 4, rounds=2, text={"num_steps": 5})
    assert order == [("a", 9), ("b", 5)] * 3
    assert taken == [[2.0, 2.0], [1.0, 1.0]]
