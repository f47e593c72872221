"""`cads`: noise on a prompt's tokens, in requests. `test_annealing.py` has the formula."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from fake_text import text_bundle
from tolerances import IMAGE_GREY_LEVELS

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError
from ddm_rt.sample.manifest import read_manifest
from ddm_rt.sample.pipeline import Pipeline

CADS = (0.25, 0.6, 0.9)
PROMPTS = ["a nurse", "a judge"]
OTHERS: dict[str, Any] = {"indicator_guidance_scale": 2.0, "guidance_interval": (0.2, 0.8), "apg": (5, 0)}
OPTIONS: dict[str, Any] = {"num_steps": 5, "negative_prompt": "blurry", "guidance_scale": 4.0}


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
@pytest.mark.parametrize(
    "more", [{}, {"indicator_guidance_scale": 2.0, "guidance_interval": (0.2, 0.8), "apg": (5, 0)}]
)
def test_an_image_has_noise_of_its_own_whoever_its_neighbours_are(
    latent_bundles: Mapping[str, Bundle], backend: str, more: dict[str, Any]
) -> None:
    pipeline = Pipeline.load(latent_bundles["sd15"], backend, threads=1)
    made = pipeline.generate(PROMPTS, n=4, seed=4, cads=CADS, **OPTIONS, **more)
    plain = pipeline.generate(PROMPTS, n=4, seed=4, **OPTIONS, **more)
    assert "cads" not in plain.manifest["request"]
    assert made.manifest["request"]["cads"] == [*CADS]
    for i in range(4):
        assert made.images[i].tobytes() != plain.images[i].tobytes()
        again = pipeline.replay(made.manifest, index=i)
        assert again.images[0].tobytes() == made.images[i].tobytes()
    together = in_one_batch(pipeline, [made.manifest, plain.manifest])
    alone = [image for generation in (made, plain) for image in generation.images]
    assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]


def in_one_batch(pipeline: Pipeline, manifests: list[dict[str, Any]]) -> list[Any]:
    """The images of several requests, each of which joins the others a step later."""
    requests = [pipeline.recorded(read_manifest(tree)) for tree in manifests]
    slots = pipeline.slots(requests[0].shape)
    samples: dict[int, Any] = {}
    while requests or len(slots):
        if requests:
            request = requests.pop(0)
            slots.admit(request.table, pipeline.first_states(request, range(len(request.jobs))), request.jobs)
        numbers, x0 = slots.tick()
        for row, number in enumerate(numbers):
            samples[number] = pipeline.engine.take(x0, np.array([row]))
    return [pipeline.decode(samples[number], 1, slots.buckets)[0] for number in sorted(samples)]


def test_backends_agree(latent_bundles: Mapping[str, Bundle]) -> None:
    made = [
        Pipeline.load(latent_bundles["sd15"], backend, threads=1).generate(PROMPTS, n=2, seed=4, cads=CADS, **OPTIONS)
        for backend in ("onnxruntime", "torch")
    ]
    off = np.abs(made[0].images.astype(int) - made[1].images.astype(int))
    assert off.max() <= IMAGE_GREY_LEVELS


@pytest.mark.parametrize(
    ("cads", "said"),
    [
        ((0.25, 0.6), "cads is .* expected 3 finite numbers"),
        ((0.0, 0.6, 0.9), "cads is .* expected a scale of 1e-06 to"),
        ((0.25, 0.9, 0.6), "and an end below a begin"),
        ((0.25, 0.6, 1.1), "both within 0 and 1"),
        ("words", "cads is 'words'; expected numbers: scale, end, begin"),
    ],
)
def test_what_it_may_be(tmp_path: Path, cads: Any, said: str) -> None:
    with pytest.raises(DdmError, match=said):
        Pipeline(text_bundle(tmp_path), FakeEngine()).generate("a nurse", cads=cads)


def test_a_bundle_without_prompts_has_no_tokens_for_it() -> None:
    with pytest.raises(DdmError, match="cads is given; bundle 'digits' is prompt-free"):
        Pipeline.load("digits").generate(cads=CADS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cads": [0.25, 0.6, 0.9]}, "cads is given; bundle 'digits' is prompt-free"),
        ({"apg": [1e308, 0.0]}, "apg is .* expected a norm of 1e-06 to"),
        ({"guidance_interval": [0.9, 0.1]}, "guidance_interval is .* expected a start below a stop"),
    ],
)
def test_a_manifest_may_be_no_more_than_a_request(change: dict[str, Any], said: str) -> None:
    pipeline = Pipeline.load("digits", threads=1)
    manifest = pipeline.generate(num_steps=1).manifest
    with pytest.raises(DdmError, match=said):
        pipeline.replay(manifest | {"request": manifest["request"] | change})
