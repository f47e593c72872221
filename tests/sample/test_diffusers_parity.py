"""Stable Diffusion bundles against diffusers' own pipelines: the same noise, prompts, scheduler and guidance."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from latent_runs import EXPORTED
from numpy.typing import NDArray
from tolerances import PIPELINE_LATENTS_ABS, TEXT_EMBEDDINGS_ABS

from ddm_rt.bundle import Bundle
from ddm_rt.config import RunConfig, SamplerName, parse_json
from ddm_rt.engine import backends
from ddm_rt.engine.contract import Engine
from ddm_rt.engine.torch.eager import Eager
from ddm_rt.engine.torch.engine import TorchEngine
from ddm_rt.engine.torch.weights import load
from ddm_rt.model.assemble import assemble
from ddm_rt.model.checkpoint.importing import import_run
from ddm_rt.runtime import Codes
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.loop.tokenizers import Tokenizers
from ddm_rt.sample.pipeline import Pipeline

Latents = NDArray[np.float32]

BACKENDS = ("onnxruntime", "torch")
STEPS, GUIDANCE, SEED = 20, 7.5, 3
PROMPT, NEGATIVE = "a photo of a doctor at work, 35mm", "blurry, low quality"
# Prompt and negative prompt; None: the family's own null text, which is zeros for SDXL.
TEXTS = ((PROMPT, NEGATIVE), (PROMPT, None), (PROMPT, ""), ("", NEGATIVE), ("", None))


@pytest.fixture(scope="module", params=EXPORTED)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bundle(family: str, exported_bundles: Mapping[str, Bundle]) -> Bundle:
    return exported_bundles[family]


def opened(checkpoint: Path) -> Any:
    """diffusers' pipeline, which takes its class, scheduler and settings from the folder."""
    pipeline = DiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def reference(family: str, bundle: Bundle, checkpoints: Mapping[str, Path]) -> Any:
    """The checkpoint's pipeline with the bundle's low-rank factors in its UNet, and nothing of its codes."""
    pipeline = opened(checkpoints[family])
    weights = load(bundle).state_dict()
    merged = {name: weights[f"unet.{name}"] for name in pipeline.unet.state_dict()}
    assert any(not torch.equal(tensor, merged[name]) for name, tensor in pipeline.unet.state_dict().items())
    pipeline.unet.load_state_dict(merged)
    return pipeline


def expected(pipeline: Any, bundle: Bundle, prompt: str, negative_prompt: str | None) -> Latents:
    side = bundle.config.image_size
    noise = normal(np.array([SEED], np.uint64), 0, Stream.INITIAL, bundle.config.latent_shape)
    latents: Latents = pipeline(
        prompt,
        negative_prompt=negative_prompt,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        height=side,
        width=side,
        latents=torch.from_numpy(noise),
        output_type="latent",
    ).images.numpy()
    return latents


class Watched:
    """An engine that keeps what its decoder was given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.latents: list[Latents] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def decoder(self, x0: Any) -> Latents:
        self.latents.append(np.asarray(x0))
        return self._engine.decoder(x0)

    def images(self, x0: Any) -> Any:
        self.latents.append(np.asarray(x0))
        return self._engine.images(x0)


@pytest.fixture(scope="module")
def pipelines(bundle: Bundle) -> Callable[[str], Pipeline]:
    """The bundle's pipeline on a backend, made once: it probes batch sizes."""
    return functools.cache(lambda backend: Pipeline(bundle, Watched(backends.load(bundle, backend, 1))))


def found(pipeline: Pipeline, **request: Any) -> Latents:
    """Latents of one image; the null code unless the request says otherwise."""
    pipeline.generate(**({"seed": SEED, "num_steps": STEPS, "guidance_scale": GUIDANCE, "balance": "off"} | request))
    latents: Latents = pipeline.engine.latents[-1][:1]
    return latents


@pytest.mark.parametrize("backend", BACKENDS)
def test_latents_are_those_of_diffusers(
    family: str, bundle: Bundle, reference: Any, pipelines: Callable[[str], Pipeline], backend: str
) -> None:
    assert bundle.config.sampling.sampler is (SamplerName.EULER if family == "sdxl" else SamplerName.DDIM)
    # The torch backend is the slower one here, and texts are the business of the rooms above both.
    for prompt, negative_prompt in TEXTS if backend == "onnxruntime" else TEXTS[:1]:
        want = expected(reference, bundle, prompt, negative_prompt)
        texts = {"prompt": prompt, "negative_prompt": negative_prompt}
        latents = found(pipelines(backend), **texts)
        np.testing.assert_allclose(latents, want, rtol=0, atol=PIPELINE_LATENTS_ABS, err_msg=str(texts))


def test_a_code_changes_what_the_null_code_leaves_alone(pipelines: Callable[[str], Pipeline]) -> None:
    pipeline = pipelines("onnxruntime")
    null, code = (found(pipeline, prompt=PROMPT, balance="auto", codes=[code]) for code in (-1, 2))
    np.testing.assert_array_equal(null, found(pipeline, prompt=PROMPT))
    assert np.abs(code - null).max() > 100 * PIPELINE_LATENTS_ABS


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_text_embeddings_are_those_of_diffusers(family: str, bundle: Bundle, reference: Any, backend: str) -> None:
    engine, tokenizers = backends.load(bundle, backend, 1), Tokenizers(bundle)
    options = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
    for text in (PROMPT, "", "naïve 🙂 café", "too long " * 60):
        ours = engine.text_encoder(tokenizers.ids(text))
        embeddings = [tensor for tensor in reference.encode_prompt(text, **options) if tensor is not None]
        assert list(ours) == ["context", "text_embeds"][: len(embeddings)]
        for mine, theirs in zip(ours.values(), embeddings, strict=True):
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=0, atol=TEXT_EMBEDDINGS_ABS)


def test_an_imported_checkpoint_gives_its_own_images(
    family: str, bundle: Bundle, checkpoints: Mapping[str, Path], tmp_path: Path
) -> None:
    """Without adapter and codes; on the torch backend, which needs no export: what is exported is compared above."""
    import_run(checkpoints[family], tmp_path / "run")
    run = parse_json(RunConfig, (tmp_path / "run" / "config.json").read_bytes(), tmp_path)
    codes = Codes(origin="none")
    config = bundle.config.model_copy(update={"codes": (), "sampling": run.sampling})
    plain = dataclasses.replace(bundle, config=config)
    engine = TorchEngine.of_networks(plain, Eager(plain, assemble(tmp_path / "run", run, codes)), 1)
    pipeline = Pipeline(plain, Watched(engine))
    pipeline._sizes.groups[bundle.config.latent_shape] = ((1,),)  # one image: nothing to probe
    latents = found(pipeline, prompt=PROMPT, negative_prompt=NEGATIVE)
    want = expected(opened(checkpoints[family]), bundle, PROMPT, NEGATIVE)
    np.testing.assert_allclose(latents, want, rtol=0, atol=PIPELINE_LATENTS_ABS)
