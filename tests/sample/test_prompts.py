"""Requests with prompts: which image gets which text and code, what is recorded, and that nothing else matters."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine, Quirk
from fake_text import text_bundle

from ddm_rt.bundle import Bundle
from ddm_rt.config import Family
from ddm_rt.engine.contract import CPU_PIXELS
from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.noise import derive
from ddm_rt.sample.pipeline import Pipeline

PROMPTS = ["a nurse", "a judge", "a female judge"]

Make = Callable[..., Pipeline]


@pytest.fixture
def pipeline_of(tmp_path: Path) -> Make:
    """A pipeline on the fake engine, of a bundle that takes prompts."""

    def make(quirk: Quirk = "none", **options: Any) -> Pipeline:
        return Pipeline(text_bundle(tmp_path, **options), FakeEngine(quirk))

    return make


@pytest.mark.parametrize("quirk", ["none", "batch size", "position", "neighbours", "size 1"])
@pytest.mark.parametrize(
    "options", [{}, {"sized": True}, {"indicator_guidance_scale": 1.5}, {"guidance_scale": 1.0}], ids=str
)
def test_neighbours_with_other_prompts_change_nothing(pipeline_of: Make, options: dict[str, Any], quirk: Quirk) -> None:
    codes = [0, -1, 1, 3, 2, 2, -1]
    whole = pipeline_of(quirk, **options).generate(PROMPTS, negative_prompt="blurry", n=7, seed=9, codes=codes)
    assert len(np.unique(whole.images.reshape(7, -1), axis=0)) == 7
    alone = pipeline_of(quirk, **options)
    for i, code in enumerate(codes):
        one = alone.generate(PROMPTS[i % 3], negative_prompt="blurry", seed=derive(9, i), codes=[code])
        assert one.images[0].tobytes() == whole.images[i].tobytes()
    crowd = alone.generate(
        [PROMPTS[0], "a dog", ""], negative_prompt="blurry", n=40, seed=9, codes=codes[:1] + [1] * 39
    )
    assert crowd.images[0].tobytes() == whole.images[0].tobytes()


def test_prompt_negative_prompt_and_scales_all_count(pipeline_of: Make) -> None:
    pipeline = pipeline_of()
    requests: list[dict[str, Any]] = [
        {},
        {"prompt": "a nurse"},
        {"prompt": "a judge"},
        {"prompt": "a nurse", "negative_prompt": "blurry"},
        {"prompt": "a nurse", "guidance_scale": 3.0},
        {"prompt": "a nurse", "indicator_guidance_scale": 3.0},
        {"prompt": "a nurse", "codes": [-1]},
    ]
    assert len({pipeline.generate(**request).images.tobytes() for request in requests}) == len(requests)
    joint = pipeline.generate("a nurse", guidance_scale=3.0).images
    same = pipeline.generate("a nurse", guidance_scale=3.0, indicator_guidance_scale=3.0).images
    assert joint.tobytes() == same.tobytes()
    empty = pipeline.generate("", negative_prompt="").images
    assert empty.tobytes() == pipeline.generate().images.tobytes()


def rows_per_image(pipeline: Pipeline, **request: Any) -> float:
    pipeline.buckets  # noqa: B018 - the probe has calls of its own
    pipeline.engine.denoised.clear()
    pipeline.generate(n=8, num_steps=3, **request)
    return sum(pipeline.engine.denoised) / 3 / 8


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, 2),  # joint: no extra pass
        ({"indicator_guidance_scale": 3.0}, 3),
        ({"guidance_scale": 1.0}, 1),
        ({"balance": "off"}, 2),
        ({"balance": "off", "indicator_guidance_scale": 3.0}, 2),
    ],
)
def test_work_per_step(pipeline_of: Make, options: dict[str, Any], rows: int) -> None:
    # This quirk leaves calls of one row, so none is filled up.
    assert rows_per_image(pipeline_of("position"), prompt="a nurse", **options) == rows


def test_the_text_encoder_runs_once_per_prompt(pipeline_of: Make) -> None:
    pipeline = pipeline_of()
    pipeline.buckets  # noqa: B018 - the probe has texts of its own, the empty one among them
    pipeline.engine.encoded.clear()
    pipeline.generate(PROMPTS, negative_prompt="blurry", n=20)
    pipeline.generate(PROMPTS[:2], n=20, seed=5)
    assert len(pipeline.engine.encoded) == 4


def test_manifest_holds_the_texts(pipeline_of: Make) -> None:
    pipeline = pipeline_of()
    manifest = pipeline.generate("a nurse", negative_prompt="blurry", n=2, guidance_scale=5.0).manifest
    request = manifest["request"]
    assert (request["prompt"], request["negative_prompt"]) == ("a nurse", "blurry")
    assert (request["guidance_scale"], request["indicator_guidance_scale"]) == (5.0, 5.0)
    assert manifest["versions"].keys() == {"numpy", "tokenizers"}
    assert all("prompt" not in image for image in manifest["images"])
    several = pipeline.generate(PROMPTS, n=4).manifest
    assert several["request"]["prompt"] == PROMPTS
    assert [image["prompt"] for image in several["images"]] == [*PROMPTS, PROMPTS[0]]


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": "a nurse"},
        {"prompt": PROMPTS, "negative_prompt": "blurry", "guidance_scale": 3.0, "indicator_guidance_scale": 2.0},
        {"prompt": PROMPTS, "leave_alone": ["female"]},
        {"prompt": ["🙂 \n\0", ""], "balance": "off"},
        {},
    ],
    ids=str,
)
@pytest.mark.parametrize("sized", [False, True])
def test_replay_gives_the_same_bytes(pipeline_of: Make, options: dict[str, Any], sized: bool, tmp_path: Path) -> None:
    made = pipeline_of(sized=sized).generate(n=5, seed=8, **options)
    path = made.save(tmp_path / "out") / "manifest.json"
    assert json.loads(path.read_text()) == made.manifest
    pipeline = pipeline_of(sized=sized, num_steps=9, guidance_scale=2.0)  # replay takes nothing from the defaults
    again = pipeline.replay(path)
    assert again.images.tobytes() == made.images.tobytes()
    assert again.manifest == made.manifest
    for index in range(5):
        one = pipeline.replay(path, index=index)
        assert one.images[0].tobytes() == made.images[index].tobytes()


def test_prompts_that_name_a_word_are_left_alone_and_the_rest_is_balanced(pipeline_of: Make) -> None:
    pipeline = pipeline_of()
    made = pipeline.generate(PROMPTS, n=12, leave_alone=["woman", "female"])
    named = [i for i in range(12) if i % 3 == 2]
    assert [i for i, code in enumerate(made.codes) if code == -1] == named
    tops = Counter(image["top_code"] for image in made.manifest["images"])
    assert tops == {-1: 4, 0: 4, 1: 4}
    assert made.manifest["request"]["leave_alone"] == ["woman", "female"]
    off = pipeline.generate(PROMPTS, n=12, balance="off")
    assert all(made.images[i].tobytes() == off.images[i].tobytes() for i in named)
    everyone = pipeline.generate("a female judge", n=4, leave_alone=["female"])
    assert everyone.codes == (-1,) * 4
    assert everyone.manifest["target"] is None


def test_images_that_are_left_alone_count_in_no_scope(pipeline_of: Make) -> None:
    pipeline = pipeline_of()
    words = {"jobs": ["female"], "other": ["judge"]}
    options: dict[str, Any] = {"scope": "jobs", "leave_alone": words, "n": 6}
    made = [pipeline.generate(PROMPTS, seed=seed, **options) for seed in range(2)]
    positions = [image["position"] for one in made for image in one.manifest["images"]]
    assert positions == [0, 2, None, 1, 3, None, 4, 6, None, 5, 7, None]  # a run for each prompt
    codes = [code for one in made for code in one.codes if code != -1]
    assert Counter(codes) == dict.fromkeys(range(4), 2)


def test_a_large_models_images_come_one_by_one(pipeline_of: Make) -> None:
    """A VAE at full size on a CPU: there is nothing to probe, and no call has two images."""
    pipeline = pipeline_of()
    pipeline.engine.max_pixels = CPU_PIXELS
    large = {"family": Family.SD, "image_size": 256, "latent_shape": (4, 128, 128)}
    object.__setattr__(pipeline.bundle, "config", pipeline.bundle.config.model_copy(update=large))
    assert pipeline.buckets == (1,)
    assert not pipeline.engine.denoised
    assert pipeline.slots((4, 32, 32)).buckets[-1] == 16  # of 64 x 64 pixels


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["a nurse", None]}, "prompt is None"),
        ({"negative_prompt": "\udcff"}, "negative_prompt"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": -0.1}, "guidance_scale is -0.1"),
        ({"indicator_guidance_scale": float("nan")}, "indicator_guidance_scale is nan"),
        ({"leave_alone": [""]}, "leave_alone"),
        ({"leave_alone": ["man"], "balance": "on"}, "leave_alone"),
        ({"prompt": "a man", "leave_alone": ["man"], "codes": [0]}, "leave_alone"),
    ],
)
def test_bad_requests_name_the_argument(pipeline_of: Make, options: dict[str, Any], said: str) -> None:
    pipeline = pipeline_of()
    with pytest.raises(DdmError, match=said):
        pipeline.generate(**options)
    assert not pipeline.engine.denoised


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_neighbours_change_nothing_on_real_backends(latent_bundles: Mapping[str, Bundle], backend: str) -> None:
    bundle = latent_bundles["sd15"]
    options: dict[str, Any] = {"negative_prompt": "blurry", "num_steps": 2, "indicator_guidance_scale": 2.0}
    pipeline = Pipeline.load(bundle, backend, threads=1)
    whole = pipeline.generate(PROMPTS, n=4, seed=4, leave_alone=["female"], **options)
    assert whole.codes[2] == -1
    assert len(np.unique(whole.images.reshape(4, -1), axis=0)) == 4
    restarted = Pipeline.load(bundle.path, backend, threads=1)
    for i in (1, 2):
        again = restarted.replay(whole.manifest, index=i)
        assert again.images[0].tobytes() == whole.images[i].tobytes()
    crowd = restarted.generate(
        [PROMPTS[0], "a dog", "", "a cat"], n=5, seed=4, codes=[whole.codes[0], 1, -1, 2, 3], **options
    )
    assert crowd.images[0].tobytes() == whole.images[0].tobytes()
