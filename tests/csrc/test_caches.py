"""Caches in the embedding library: found in a bundle, sampled with, written down and replayed as in Python."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundle_formats import change, read, reindex, write
from c_library import CError, CLibrary, CPipeline
from embedding_build import Built, run
from tolerances import IMAGE_GREY_LEVELS

from ddm_rt.bundle import Bundle, copy_bundle
from ddm_rt.errors import DdmError
from ddm_rt.sample.cache.record import Cache, CacheSettings, Fit, Judged, store
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request

PASSED = Judged(
    judge="j",
    groups=("3", "8"),
    reference="none",
    n=4,
    seed=2**64 - 1,
    margin=0.03,
    frechet_ratio=1.05,
    balance="equivalent",
    quality="equivalent",
    diversity="equivalent",
)
CHANGED = PASSED.model_copy(update={"diversity": "changed"})
GUIDED: dict[str, Any] = {"guidance_interval": (0.2, 0.8), "apg": (2.5, 0.25)}
ROWS = ((0.9, 0.1, 0.0, -0.05), (0.7, 0.4, -0.1, 0.02), (0.3, 0.5, 0.2, 0.0), (0.0, 1.0, 0.0, 0.0))


def reuse(*steps: int) -> Reuse:
    return Reuse(steps=steps, rows=(*ROWS[: len(steps) - 1], ROWS[-1]))


def with_cache(bundle: Bundle, name: str, found: Reuse, judged: Judged | None = None, **asked: Any) -> Bundle:
    """A copy's own: found for what is asked, with as many steps as the cache is of."""
    resolved = Request(num_steps=found.steps[-1] + 1, **asked).resolve(bundle)
    settings = CacheSettings.of(resolved.request, resolved.table.sampler, resolved.num_steps)
    fit = Fit(n=2, seed=1, error=0.1, spread=1.0)
    cache = Cache(bundle_id=bundle.bundle_id, settings=settings, reuse=found, fit=fit, judged=judged)
    return store(bundle, cache, name)


def digits(folder: Path) -> Bundle:
    bundle = copy_bundle(Bundle.load("digits"), folder)
    bundle = with_cache(bundle, "two", reuse(0, 5), CHANGED)
    bundle = with_cache(bundle, "three", reuse(0, 2, 5), PASSED)
    bundle = with_cache(bundle, "three-more", reuse(0, 3, 5), PASSED)
    bundle = with_cache(bundle, "three.0", reuse(0, 1, 5))  # before "three", where paths are sorted
    bundle = with_cache(bundle, "four", reuse(0, 2, 3, 5), PASSED)
    return with_cache(
        bundle, "guided", reuse(0, 2, 4), sampler="dpm++2m", guidance_interval=(0.2, 0.8), apg=(2.5, 0.25)
    )


@pytest.fixture(scope="module")
def sides(c_library: CLibrary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pipeline, CPipeline]]:
    bundle = digits(tmp_path_factory.mktemp("caches") / "digits")
    with c_library.pipeline(bundle.path) as there:
        yield Pipeline.load(bundle, backend="onnxruntime", threads=1), there


def near(a: np.ndarray, b: np.ndarray) -> bool:
    return int(np.abs(a.astype(int) - b).max()) <= IMAGE_GREY_LEVELS


@pytest.mark.parametrize(
    ("asked", "calls"),
    [
        ({"cache": "off"}, None),
        ({"cache": "auto"}, 3),
        ({"cache": 2}, 2),
        ({"cache": 3, "codes": [-1, 0, 3]}, 3),
        ({"cache": 4, "scope": "s"}, 4),
        ({"cache": "auto", "indicator_guidance_scale": 3.0}, None),
        ({"cache": "auto", "num_steps": 5}, None),
        ({"cache": 3, "num_steps": 5, "sampler": "dpm++2m", **GUIDED}, 3),
    ],
    ids=str,
)
def test_a_request_with_a_cache_gives_pythons_images(
    sides: tuple[Pipeline, CPipeline], tmp_path: Path, asked: dict[str, Any], calls: int | None
) -> None:
    here, there = (side.generate(**{"n": 3, "seed": 7, "num_steps": 6, **asked}) for side in sides)
    assert near(here.images, there.images)
    if calls is not None:
        assert len(there.manifest["request"]["cache"]["steps"]) == calls
    here.manifest["versions"] = there.manifest["versions"]
    assert there.text == (here.save(tmp_path / "out") / "manifest.json").read_text("utf-8")


def test_each_side_replays_the_others_manifest(sides: tuple[Pipeline, CPipeline]) -> None:
    python, c = sides
    here, there = (side.generate(n=3, num_steps=6, cache=4) for side in sides)
    assert near(c.replay(json.dumps(here.manifest)).images, here.images)
    assert near(python.replay(there.manifest).images, there.images)
    again = c.replay(there.text)
    assert (again.images == there.images).all()
    assert again.text == there.text
    assert (c.replay(there.text, index=1).images[0] == there.images[1]).all()


@pytest.mark.parametrize(
    "asked",
    [
        {"cache": 1},
        {"cache": 10_001},
        {"cache": -2},
        {"cache": 5},
        {"cache": 3, "num_steps": 7},
        {"cache": 3, "sampler": "euler"},
        {"cache": 3, "height": 64},
        {"cache": 3, "apg": (2.5, 0.0)},
    ],
    ids=str,
)
def test_a_cache_that_there_is_not(sides: tuple[Pipeline, CPipeline], asked: dict[str, Any]) -> None:
    for side in sides:
        with pytest.raises((DdmError, CError), match=f"^cache is {asked['cache']}") as caught:
            side.generate(**{"num_steps": 6, **asked})
        assert getattr(caught.value, "field", "cache") == "cache"


def test_what_other_caches_are_found_for_is_told(sides: tuple[Pipeline, CPipeline]) -> None:
    said = []
    for side in sides:
        with pytest.raises((DdmError, CError)) as caught:
            side.generate(num_steps=6, cache=5)
        said.append(str(caught.value))
    here, there = (each.partition("; guided: ")[0] for each in said)
    assert here == there
    assert "num_steps is 6 (found for 5)" in said[1]


def refused(sides: tuple[Pipeline, CPipeline], tree: dict[str, Any]) -> list[str]:
    said = []
    for replay in (lambda: sides[0].replay(tree), lambda: sides[1].replay(json.dumps(tree))):
        with pytest.raises((DdmError, CError)) as caught:
            replay()
        said.append(str(caught.value))
    return said


def test_a_manifests_cache_that_does_not_fit_its_table(sides: tuple[Pipeline, CPipeline]) -> None:
    tree = sides[0].generate(num_steps=6, cache=3).manifest
    for changes in ({"num_steps": 7}, {"num_steps": 5}, {"sampler": "ddpm"}):
        here, there = refused(sides, tree | changes)
        assert here.startswith("cache")
        assert here.split()[:4] == there.split()[:4]
    request = tree["request"]
    for cache in ({"rows": [[1, 0, 0, 0]]}, {"steps": [0, 2, 4]}):
        tree["request"] = request | {"cache": request["cache"] | cache}
        here, there = refused(sides, tree)
        assert here.split()[:4] == there.split()[:4] == ["cache:", "has", *here.split()[2:4]]


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        (("schema_version",), 2),
        (("bundle_id",), "x"),
        (("settings", "num_steps"), 0),
        (("settings", "sampler"), "abacus"),
        (("settings", "apg"), [1]),
        (("settings", "eta"), 0.0),
        (("reuse", "steps"), [0, 2, 1]),
        (("reuse", "rows"), [[1, 0, 0, 1e7]]),
        (("fit", "error"), None),
        (("judged", "balance"), "perfect"),
        (("judged", "quality"), "perfect"),
        (("judged", "groups"), 3),
        (("more",), 1),
    ],
    ids=str,
)
def test_a_file_that_is_no_cache(c_library: CLibrary, tmp_path: Path, fields: tuple[str, ...], value: Any) -> None:
    path = digits(tmp_path / "digits").path
    change(path, "tables/three/cache.json", *fields, value=value)
    said = []
    with c_library.pipeline(path) as there:
        for side in (Pipeline.load(path, backend="onnxruntime", threads=1), there):
            # It is passed over, and only who asks for it is told.
            assert len(side.generate(num_steps=6, cache="auto").manifest["request"]["cache"]["steps"]) == 3
            with pytest.raises((DdmError, CError)) as caught:
                side.generate(num_steps=6, cache=5)
            said.append(str(caught.value))
    assert all("three: it can't be read" in each for each in said)


def test_a_cache_of_a_former_id_holds_and_an_altered_file_is_refused(c_library: CLibrary, tmp_path: Path) -> None:
    path = with_cache(copy_bundle(Bundle.load("digits"), tmp_path / "digits"), "two", reuse(0, 5)).path
    (former,) = Bundle.load(path).index.former_ids
    file = "tables/two/cache.json"
    change(path, file, "bundle_id", value=former)
    with c_library.pipeline(path) as there:
        first = there.generate(num_steps=6, cache=2).text
        whole = (path / file).read_bytes()
        (path / file).write_bytes(whole.replace(b"0.9", b"0.8"))
        with pytest.raises(CError, match=r"two: it can't be read"):
            there.generate(num_steps=6, cache=2)
        there.generate(num_steps=6, cache="off")
        (path / file).write_bytes(whole)
        assert there.generate(num_steps=6, cache=2).text == first
    write(path / "bundle.json", read(path / "bundle.json") | {"former": []})
    reindex(path)
    with c_library.pipeline(path) as there, pytest.raises(CError, match=f"it is of another bundle, {former[:12]}"):
        there.generate(num_steps=6, cache=2)


def test_noise_on_tokens_and_a_cache_exclude_each_other(
    c_library: CLibrary, latent_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"prompt": "a doctor", "indicator_guidance_scale": 2.0, "num_steps": 5}
    bundle = with_cache(
        copy_bundle(latent_bundles["sd15"], tmp_path / "sd"),
        *("a", reuse(0, 2, 4), PASSED),
        **{name: value for name, value in asked.items() if name != "num_steps"},
    )
    noisy = {"cads": (0.25, 0.2, 0.9)}
    python = Pipeline.load(bundle, backend="onnxruntime", threads=1)
    with c_library.pipeline(bundle.path) as c:
        here, there = (side.generate(n=2, cache="auto", **asked) for side in (python, c))
        assert near(here.images, there.images)
        assert len(there.manifest["request"]["cache"]["steps"]) == 3
        tree = here.manifest
        tree["request"] |= {"cads": list(noisy["cads"])}
        for side, manifest in ((python, tree), (c, json.dumps(tree))):
            assert "cache" not in side.generate(n=1, cache="auto", **asked, **noisy).manifest["request"]
            with pytest.raises((DdmError, CError), match="cads is"):
                side.generate(n=1, cache=3, **asked, **noisy)
            with pytest.raises((DdmError, CError), match="cads adds noise to the prompt's tokens"):
                side.replay(manifest)


def test_the_command_takes_a_cache(built: Built, sides: tuple[Pipeline, CPipeline], tmp_path: Path) -> None:
    python = sides[0]
    for cache in ("off", "auto", "2"):
        out = tmp_path / cache
        asked = ("-n", "2", "--steps", "6", "--threads", "1", "--cache", cache, "--out", out)
        run(built.cli, "sample", python.bundle.path, *asked, folder=tmp_path)
        manifest = json.loads((out / "manifest.json").read_bytes())
        here = python.generate(n=2, num_steps=6, cache=cache).manifest
        assert manifest | {"versions": None} == here | {"versions": None}
