"""Caches: steps without a call of the model, from the fit to what a request gets."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, fake_bundle

from ddm_rt.bundle import Bundle, copy_bundle
from ddm_rt.config import SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.sample.cache.fit import Fitter
from ddm_rt.sample.cache.record import Cache, CacheSettings, Fit, Judged, load_all, store
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.manifest import read_manifest
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.settings import ServeSettings

SIX = Reuse(steps=(0, 1, 3, 5, 7, 9), rows=((0.5, 0.6, 0.0, -0.1),) * 6)
FOUR_OF_TEN = Reuse(steps=(0, 3, 6, 9), rows=((0.5, 0.6, 0.0, -0.1),) * 4)
JUDGED = Judged(
    judge="j",
    groups=("3", "8"),
    reference="none",
    n=4,
    seed=0,
    margin=0.03,
    frechet_ratio=1.05,
    balance="equivalent",
    quality="equivalent",
    diversity="equivalent",
)


def fake() -> Pipeline:
    return Pipeline(fake_bundle(), FakeEngine())


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return copy_bundle(Bundle.load("digits"), tmp_path / "digits")


def cache_of(bundle: Bundle, reuse: Reuse = FOUR_OF_TEN, judged: Judged | None = None, **asked: Any) -> Cache:
    resolved = Request(num_steps=reuse.steps[-1] + 1, **asked).resolve(bundle)
    settings = CacheSettings.of(resolved.request, resolved.table.sampler, resolved.num_steps)
    return Cache(
        bundle_id=bundle.bundle_id,
        settings=settings,
        reuse=reuse,
        fit=Fit(n=2, seed=1, error=0.1, spread=1.0),
        judged=judged,
    )


@pytest.mark.parametrize("sampler", [SamplerName.DDIM, SamplerName.EULER, SamplerName.DPMPP_2M])
@pytest.mark.parametrize("options", [{}, {"guidance_interval": (0.2, 0.6)}, {"apg": (2.0, 0.5)}])
def test_a_fitted_walk_is_nearer_to_the_whole_one_than_as_few_steps(
    sampler: SamplerName, options: dict[str, Any]
) -> None:
    pipeline = fake()
    asked: dict[str, Any] = {"sampler": sampler, "num_steps": 20, **options}
    with pipeline.prepare(Request(n=8, seed=5, **asked)) as prepared:
        found = Fitter(pipeline, prepared).fit(6)
    assert (len(found.reuse.steps), found.reuse.steps[0], found.reuse.steps[-1]) == (6, 0, 19)
    whole = latents(pipeline, n=8, seed=77, **asked)
    few = latents(pipeline, n=8, seed=77, **asked | {"num_steps": 6})
    cached = latents(pipeline, n=8, seed=77, **asked, cache=found.reuse)
    assert np.abs(cached - whole).mean() < 0.5 * np.abs(few - whole).mean()


def latents(pipeline: Pipeline, **asked: Any) -> np.ndarray[Any, Any]:
    with pipeline.prepare(Request(**asked)) as prepared:
        slots = pipeline.slots(prepared.shape, prepared.manifest)
        slots.admit(prepared.table, pipeline.first_states(prepared, range(asked["n"])), prepared.jobs)
        x0 = None
        for _ in range(prepared.table.num_steps):
            _, x0 = slots.tick()
    return np.asarray(x0)


def test_rows_that_are_the_tables_own_give_its_images_to_a_rounding() -> None:
    pipeline = fake()
    table = Request(num_steps=5).resolve(pipeline.bundle).table
    rows = tuple(zip(table.c.tolist(), table.d.tolist(), table.e.tolist(), table.g.tolist(), strict=True))
    every = Reuse(steps=(0, 1, 2, 3, 4), rows=rows)
    plain, cached = (pipeline.generate(n=3, num_steps=5, cache=cache) for cache in (None, every))
    assert plain.images.tobytes() == cached.images.tobytes()


def test_only_its_steps_call_the_model() -> None:
    pipeline = fake()
    engine: Any = pipeline.engine
    pipeline.generate(n=1, num_steps=10)  # the probe of batch sizes has calls of its own
    before = len(engine.denoised)
    made = pipeline.generate(n=1, num_steps=10, cache=FOUR_OF_TEN)
    assert len(engine.denoised) - before == 4
    assert made.manifest["num_steps"] == 10
    assert made.manifest["request"]["cache"] == {
        "steps": [0, 3, 6, 9],
        "rows": [[0.5, 0.6, 0.0, -0.1]] * 4,
    }
    assert "cache" not in pipeline.generate(n=1, num_steps=10, cache="off").manifest["request"]
    assert pipeline.replay(made.manifest).images.tobytes() == made.images.tobytes()
    assert read_manifest(made.manifest).again().cache == FOUR_OF_TEN


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({"steps": [0, 9], "rows": [[1, 0, 0, 0]]}, "cache: has 1 rows for the steps"),
        ({"steps": [0, 8], "rows": [[1, 0, 0, 0]] * 2}, "up to step 9"),
        ({"steps": [1, 9], "rows": [[1, 0, 0, 0]] * 2}, "request.cache.steps.*from 0 on"),
        ({"steps": [0, 5, 5, 9], "rows": [[1, 0, 0, 0]] * 4}, "request.cache.steps.*ascending"),
        ({"steps": [0], "rows": [[1, 0, 0, 0]]}, "request.cache.steps.*two or more"),
        ({"steps": [0, 9], "rows": [[1, 0, 0, 1e9]] * 2}, "request.cache.rows"),
        ({"steps": [0, 9], "rows": [[1, 0, 0]] * 2}, "request.cache.rows"),
    ],
)
def test_a_manifest_with_another_cache_is_refused(cache: Any, said: str) -> None:
    pipeline = fake()
    made = pipeline.generate(n=1, num_steps=10)
    tree = made.manifest | {"request": made.manifest["request"] | {"cache": cache}}
    with pytest.raises(DdmError, match=said):
        pipeline.replay(tree)


def test_a_sampler_that_adds_noise_has_none() -> None:
    pipeline = fake()
    with pytest.raises(DdmError, match=r"cache is given, but the sampler ddpm adds noise"):
        pipeline.generate(n=1, num_steps=10, sampler="ddpm", cache=FOUR_OF_TEN)
    with pipeline.prepare(Request(n=2, num_steps=10, sampler="ddpm")) as asked, pytest.raises(DdmError, match="noise"):
        Fitter(pipeline, asked)


def test_a_request_finds_the_bundles_caches(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    found = store(store(bundle, cache_of(bundle), "four"), cache_of(bundle, SIX, JUDGED), "six")
    assert found.bundle_id == bundle.bundle_id
    assert set(load_all(found)) == {"four", "six"}

    def calls(cache: Any, **asked: Any) -> int:
        return Request(cache=cache, **{"num_steps": 10, **asked}).resolve(found).table.num_steps

    assert [calls(cache) for cache in (None, "off", "auto", 4, "4", 6)] == [10, 10, 6, 4, 4, 6]
    with caplog.at_level("INFO", logger="ddm_rt"):
        assert calls("auto", indicator_guidance_scale=3.0) == 10
    assert "every step calls the model" in caplog.text
    for cache, asked, said in (
        (5, {}, r"cache is 5: no cache of so many calls.*four: it has 4 calls.*--calls 5"),
        (4, {"num_steps": 9}, r"num_steps is 9 \(found for 10\)"),
        (4, {"indicator_guidance_scale": 3.0}, r"indicator_guidance_scale is 3.0 \(found for 1.5\)"),
        (1, {}, "cache is 1; expected auto, off, or a number of calls"),
        ("many", {}, "cache is 'many'; expected auto"),
        ("9" * 5000, {}, "; expected auto, off, or a number of calls"),
    ):
        with pytest.raises(DdmError, match=said):
            calls(cache, **asked)
    other = cache_of(bundle).model_copy(update={"bundle_id": "0" * 64})
    with pytest.raises(DdmError, match="it is of another bundle"):
        Request(cache=4, num_steps=10).resolve(store(found, other, "four"))


def test_bad_steps_are_refused_before_a_cache_is_looked_for(bundle: Bundle) -> None:
    for cache in (None, "auto", 4):
        with pytest.raises(DdmError, match="num_steps is 0; expected 1 to"):
            Request(num_steps=0, cache=cache).resolve(bundle)


def test_a_damaged_cache_is_passed_over_by_name(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    found = store(bundle, cache_of(bundle), "four")
    path = found.path / "tables" / "four" / "cache.json"
    path.write_text(path.read_text("utf-8").replace("0.5", "0.7"), "utf-8")
    found = store(Bundle.load(found.path), cache_of(bundle, SIX, JUDGED), "six")
    with caplog.at_level("WARNING", logger="ddm_rt"):
        assert Request(cache="auto", num_steps=10).resolve(found).table.num_steps == 6
    assert re.search(r"cache four is passed over: .*four.cache\.json", caplog.text)
    with pytest.raises(DdmError, match="four: it can't be read"):
        Request(cache=4, num_steps=10).resolve(found)
    # Another process replaces one while this one has the bundle open.
    store(Bundle.load(found.path), cache_of(bundle), "six")
    assert Request(cache="auto", num_steps=10).resolve(found).table.num_steps == 10


def test_auto_goes_by_verdicts_with_bounds_that_mean_something(bundle: Bundle) -> None:
    for loose in ({"margin": 0.5}, {"frechet_ratio": 3.0}, {"quality": None}, {"diversity": "undecided"}):
        found = store(bundle, cache_of(bundle, judged=JUDGED.model_copy(update=loose)), "four")
        assert Request(cache="auto", num_steps=10).resolve(found).table.num_steps == 10


@pytest.mark.parametrize("name", ["", ".", "..", ".four.x", "a/b", "a\\b", "x" * 65])
def test_names_that_would_harm_other_caches_are_refused(bundle: Bundle, name: str) -> None:
    with pytest.raises(DdmError, match=r"cache name .*; expected letters, digits"):
        store(bundle, cache_of(bundle), name)


def test_noise_on_tokens_and_a_cache_exclude_each_other(latent_bundles: Mapping[str, Bundle]) -> None:
    asked = Request(prompt="a nurse", num_steps=10, cads=(0.25, 0.6, 0.9))
    bundle = latent_bundles["sd15"]
    assert replace(asked, cache="auto").resolve(bundle).table.num_steps == 10
    with pytest.raises(DdmError, match="cads adds noise to the prompt's tokens"):
        replace(asked, cache=FOUR_OF_TEN).resolve(bundle)


def test_a_walk_that_isnt_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = fake()
    with pipeline.prepare(Request(n=2, num_steps=6)) as asked:
        pipeline.slots(asked.shape)  # its batch sizes were probed with numbers
        monkeypatch.setattr(pipeline.engine, "denoiser", lambda x, t, cond: np.full_like(x, np.nan))
        with pytest.raises(DdmError, match=r"walk has values that aren't finite"):
            Fitter(pipeline, asked)


def test_a_deadline_is_held_against_the_steps_that_call_the_model(bundle: Bundle) -> None:
    assert [Request(num_steps=10, cache=each).extent(bundle).steps for each in (None, 4, "4", FOUR_OF_TEN, 50)] == [
        *(10, 4, 4, 4, 10)
    ]


def test_a_server_counts_the_steps_that_call_the_model() -> None:
    pipeline = fake()
    with Scheduler(pipeline, ServeSettings()) as scheduler:
        ticket = scheduler.submit(Request(n=2, num_steps=10, cache=FOUR_OF_TEN))
        made = ticket.result(60)
    assert ticket.steps_total == 2 * 4
    assert made.images.tobytes() == pipeline.replay(made.manifest).images.tobytes()
