"""The embedding library against the Python package, on the same ONNX Runtime: images, manifests, refusals."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from c_library import CError, CLibrary, CPipeline
from core_probe import place
from embedding_build import ROOT
from tolerances import IMAGE_GREY_LEVELS

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.ort import sessions
from ddm_rt.errors import DdmError
from ddm_rt.export.precision.convert import convert
from ddm_rt.export.tiles import tile_decoder
from ddm_rt.files import asset
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.pipeline import Pipeline

DIGITS = asset("digits")
ON_WHAT = {"versions"}  # fields of a manifest that say which side made it


def grey_levels(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def compare(python: Pipeline, c: CPipeline, **request: Any) -> None:
    """The same request on both sides."""
    here, there = python.generate(**request), c.generate(**request)
    assert grey_levels(here.images, there.images) <= IMAGE_GREY_LEVELS
    assert there.codes == here.codes
    assert list(there.seeds) == [image["seed"] for image in here.manifest["images"]]
    assert {k: v for k, v in there.manifest.items() if k not in ON_WHAT} == {
        k: v for k, v in here.manifest.items() if k not in ON_WHAT
    }
    assert list(there.manifest) == list(here.manifest)
    assert there.xmp == (*map(here.xmp, here.manifest["images"]), here.xmp())


@pytest.fixture(scope="module")
def python() -> Pipeline:
    return Pipeline.load(DIGITS, backend="onnxruntime", threads=1)


@pytest.fixture(scope="module")
def digits(c_library: CLibrary) -> Iterator[CPipeline]:
    with c_library.pipeline(DIGITS) as pipeline:
        yield pipeline


@pytest.fixture(scope="module")
def sd(c_library: CLibrary, latent_bundles: Mapping[str, Bundle]) -> Iterator[tuple[Pipeline, CPipeline, list[str]]]:
    bundle, warnings = latent_bundles["sd15"], []
    with c_library.pipeline(bundle.path, warnings=warnings) as pipeline:
        yield Pipeline.load(bundle, backend="onnxruntime", threads=1), pipeline, warnings


def test_sessions_have_pythons_settings() -> None:
    """Bits wouldn't show one that is missing; timings would."""
    here = re.findall(r'add_session_config_entry\((".*?", ".*?")\)', Path(sessions.__file__).read_text())
    there = re.findall(r'AddConfigEntry\((".*?", ".*?")\)', (ROOT / "ddm_rt" / "csrc" / "backend_ort.cpp").read_text())
    assert here == there
    assert here


@pytest.mark.parametrize(
    "request_",
    [
        {"n": 5, "seed": 3},
        {"n": 9, "seed": 2**64 - 1, "num_steps": 8, "sampler": "ddpm"},
        {"n": 3, "num_steps": 6, "sampler": "euler"},
        {"n": 3, "num_steps": 6, "sampler": "dpm++2m"},
        {"n": 3, "num_steps": 4, "sampler": "lcm"},
        {"n": 3, "num_steps": 4, "balance": "off", "provenance_code": True},
        {"n": 2, "num_steps": 2, "provenance": False},
        {"n": 70, "num_steps": 2, "target": "code:0=.3,code:1=.7", "shuffle": True},
        {"n": 6, "num_steps": 3, "codes": [-1, 0, 3, 3, 15, -1], "indicator_guidance_scale": 4.0},
        {"n": 2, "num_steps": 3, "height": 64, "width": 40, "indicator_guidance_scale": 0.0},
        {"n": 5, "num_steps": 5, "codes": [-1, 0, 3, 3, 15], "guidance_interval": (0.2, 0.8), "sampler": "ddpm"},
        {"n": 4, "num_steps": 4, "apg": (2.5, 0.25), "indicator_guidance_scale": 4.0},
    ],
    ids=lambda request: ", ".join(f"{name}={value}" for name, value in request.items()),
)
def test_the_shipped_bundle_gives_pythons_images(python: Pipeline, digits: CPipeline, request_: dict[str, Any]) -> None:
    compare(python, digits, **request_)


@pytest.mark.parametrize(
    "request_",
    [
        {"n": 2, "prompt": "a photo of a doctor", "negative_prompt": "blurry"},
        {"n": 3, "prompt": ["naïve café, ÉTÉ", "it's 3 o'clock 🙂"], "seed": 9, "guidance_scale": 7.5},
        {"n": 1, "prompt": "", "guidance_scale": 3.0, "indicator_guidance_scale": 2.0, "sampler": "euler"},
        {"n": 2, "prompt": ["a judge", "a female judge"], "leave_alone": ["Woman", "female"]},
        {
            "n": 2,
            "prompt": "a doctor",
            "guidance_scale": 3.0,
            "indicator_guidance_scale": 2.0,
            "guidance_interval": (0.4, 1.0),
            "apg": (15.0, 0.0),
        },
        {"n": 2, "prompt": ["a doctor", "a judge"], "indicator_guidance_scale": 2.0, "cads": (0.25, 0.2, 0.9)},
    ],
    ids=("negative", "several", "three branches", "left alone", "guidance options", "noise on tokens"),
)
def test_a_tiny_stable_diffusion_gives_pythons_images(sd: Any, request_: dict[str, Any]) -> None:
    here, there, _ = sd
    compare(here, there, num_steps=3, **request_)


def test_ready_keys_and_values_give_pythons_images(
    c_library: CLibrary, precomputed_bundle: Bundle, tmp_path: Path
) -> None:
    for bundle in (precomputed_bundle, convert(precomputed_bundle, tmp_path / "fp16", Precision.FP16)):
        with c_library.pipeline(bundle.path) as pipeline:
            compare(Pipeline.load(bundle, backend="onnxruntime", threads=1), pipeline, n=5, num_steps=3)


def test_a_decoder_in_tiles_gives_pythons_images(
    c_library: CLibrary, latent_bundles: Mapping[str, Bundle], tmp_path: Path
) -> None:
    bundle = tile_decoder(latent_bundles["sd15"], tmp_path / "tiles", 16)
    with c_library.pipeline(bundle.path) as pipeline:
        python = Pipeline.load(bundle, backend="onnxruntime", threads=1)
        compare(python, pipeline, n=3, num_steps=2, prompt="a doctor", height=64, width=32)


@pytest.fixture
def sdxl(latent_bundles: Mapping[str, Bundle]) -> Bundle:
    """Half a minute of exporting, if no other test has asked for it."""
    return latent_bundles["sdxl"]


def test_sdxls_conditions_are_pythons(c_library: CLibrary, sdxl: Bundle) -> None:
    python = Pipeline.load(sdxl, backend="onnxruntime", threads=1)
    size = {"height": 128, "width": 64}  # one for both: batch sizes are probed for each, on either side
    with c_library.pipeline(sdxl.path) as c:
        compare(python, c, n=2, prompt="a street at night", num_steps=2, **size)
        compare(python, c, n=1, prompt="a nurse", negative_prompt="rain", num_steps=1, **size)


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(sd: Any, caplog: pytest.LogCaptureFixture) -> None:
    here, there, warnings = sd
    text = "a photo of a very old doctor " * 20
    compare(here, there, prompt=text, num_steps=1)
    (here_said,) = [record.message for record in caplog.records if "too long" in record.message]
    (there_said,) = warnings
    assert re.findall(r"\d+", here_said)[:2] == re.findall(r"\d+", there_said)


def test_pythons_manifest_replays_in_c(python: Pipeline, digits: CPipeline) -> None:
    made = python.generate(n=5, seed=8, num_steps=4, sampler="ddpm", target="code:1=1")
    again = digits.replay(json.dumps(made.manifest))
    assert grey_levels(again.images, made.images) <= IMAGE_GREY_LEVELS
    assert again.manifest["images"] == made.manifest["images"]
    one = digits.replay(json.dumps(made.manifest), index=3)
    assert (one.images[0] == again.images[3]).all()


def test_pythons_manifest_of_another_batch_size_replays_in_c(digits: CPipeline) -> None:
    """Python writes a bucket where it takes the smallest batch sizes."""
    python = Pipeline.load("digits", backend="onnxruntime", threads=1, mode="latency")
    made = python.generate(n=3, seed=5, num_steps=2)
    assert made.manifest["bucket"] == 1
    again = digits.replay(json.dumps(made.manifest))
    assert grey_levels(again.images, made.images) <= IMAGE_GREY_LEVELS
    assert json.loads(again.text)["bucket"] == 1


def test_cs_manifest_replays_in_python_and_in_c(python: Pipeline, digits: CPipeline, tmp_path: Path) -> None:
    made = digits.generate(n=5, seed=8, num_steps=4, codes=[4, -1, 0, 1, 2])
    (tmp_path / "manifest.json").write_text(made.text)
    again = python.replay(tmp_path / "manifest.json")
    assert grey_levels(again.images, made.images) <= IMAGE_GREY_LEVELS
    assert again.manifest["images"] == made.manifest["images"]
    assert (digits.replay(made.text).images == made.images).all()


def test_a_manifest_is_written_as_python_writes_it(python: Pipeline, digits: CPipeline, tmp_path: Path) -> None:
    here, there = python.generate(n=3, num_steps=2), digits.generate(n=3, num_steps=2)
    here.manifest["versions"] = there.manifest["versions"]
    assert there.text == (here.save(tmp_path / "out") / "manifest.json").read_text()


def test_two_sides_share_a_ledger(c_library: CLibrary, python: Pipeline, tmp_path: Path) -> None:
    ledger = tmp_path / "counts.ledger"
    positions, tops = [], []
    with c_library.pipeline(DIGITS, ledger=ledger) as c:
        here = Pipeline.load(DIGITS, backend="onnxruntime", threads=1, ledger=ledger)
        for n in (1, 2, 3):
            for side in (here, c):
                images = side.generate(n=n, seed=n, num_steps=1, scope="both").manifest["images"]
                positions += [image["position"] for image in images]
                tops += [image["top_code"] for image in images]
    assert positions == list(range(12))
    assert all(abs(tops[:n].count(0) - n / 2) < 1 for n in range(13))


def test_two_sessions_of_one_model_have_ledgers_of_their_own(c_library: CLibrary, tmp_path: Path) -> None:
    first, second = tmp_path / "first.ledger", tmp_path / "second.ledger"
    with (
        c_library.model(DIGITS) as model,
        c_library.session(model, ledger=first) as one,
        c_library.session(model, ledger=second) as other,
    ):
        for n in (1, 3):
            one.generate(n=n, num_steps=1, scope="mine")
        assert other.generate(n=1, num_steps=1, scope="mine").manifest["images"][0]["position"] == 0
        ((own,), (others,)) = one.ledger("mine"), other.ledger()
    assert sum(own["issued"].values()) == 4
    assert sum(others["issued"].values()) == 1
    with Ledger(first) as ledger:
        (stream,) = ledger.streams()
        counts = ledger.counts(stream)
    assert (own["scope"], own["target"], own["calibration_id"]) == (stream.scope, stream.target, stream.calibration_id)
    assert {int(code): n for code, n in own["issued"].items()} == counts.issued
    assert own["leased"] == own["pooled"] == {}


def refusal(call: Any) -> str:
    """What the error of a call names: each side has words of its own."""
    with pytest.raises((DdmError, CError)) as caught:
        call()
    return place(str(caught.value))


@pytest.mark.parametrize(
    "request_",
    [
        {"n": 0},
        {"n": -3},
        {"num_steps": 0},
        {"num_steps": 5000},
        {"sampler": "abacus"},
        {"balance": "sometimes"},
        {"balance": "on", "codes": [1]},
        {"provenance": False, "provenance_code": True},
        {"balance": "off", "codes": [1]},
        {"balance": "off", "target": "code:0=1"},
        {"codes": [1, 2]},
        {"codes": [16]},
        {"codes": [-2]},
        {"height": 33},
        {"width": -8},
        {"target": "code:7=1"},
        {"target": "\u00a0code:7=1"},
        {"target": "code:0=.5,code:0=.5"},
        {"target": "code:0=.5,code:1=.7"},
        {"target": "code:0=half,code:1=.5"},
        {"target": "female=.5,male=.5"},
        {"scope": ""},
        {"scope": "a\nb"},
        {"scope": "\u0378"},
        {"scope": "x" * 201},
        {"prompt": "a nurse"},
        {"negative_prompt": "rain"},
        {"guidance_scale": 2.0},
        {"indicator_guidance_scale": -1.0},
        {"indicator_guidance_scale": float("nan")},
        {"leave_alone": ["woman"]},
    ],
    ids=lambda request: ", ".join(f"{name}={value!r}"[:40] for name, value in request.items()),
)
def test_a_request_that_cannot_be_is_refused_as_by_python(
    python: Pipeline, digits: CPipeline, request_: dict[str, Any]
) -> None:
    assert refusal(lambda: digits.generate(**request_)) == refusal(lambda: python.generate(**request_))


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "a", "guidance_scale": -1.0},
        {"prompt": "a", "leave_alone": ["woman"], "balance": "on"},
        {"prompt": "a", "leave_alone": ["woman"], "codes": [1]},
        {"prompt": "a", "leave_alone": ["woman", " "]},
        {"prompt": "a", "height": 21},
    ],
    ids=str,
)
def test_a_request_with_a_prompt_that_cannot_be(sd: Any, request_: dict[str, Any]) -> None:
    here, there, _ = sd
    assert refusal(lambda: there.generate(**request_)) == refusal(lambda: here.generate(**request_))


@pytest.mark.parametrize(
    "change",
    [
        {"bundle_id": "0" * 64},
        {"bundle_id": "short"},
        {"schema": 2},
        {"num_steps": 0},
        {"num_steps": 2.5},
        {"sampler": "abacus"},
        {"images": []},
        {"more": 1},
        {"request": {}},
    ],
    ids=str,
)
def test_a_manifest_that_cannot_be(python: Pipeline, digits: CPipeline, change: dict[str, Any]) -> None:
    manifest = python.generate(n=2, num_steps=1).manifest | change
    here = refusal(lambda: python.replay(manifest))
    assert refusal(lambda: digits.replay(json.dumps(manifest))) == here
