"""The TensorRT engines on bundles that take prompts: a fourth network, and what SDXL's conditioner takes besides. On a
fake driver and a fake TensorRT, which run the bundle's graphs through ONNX Runtime: never a run of TensorRT.
"""

import dataclasses
import importlib.util
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if importlib.util.find_spec("cuda") is None:
    pytest.skip("needs cuda-bindings", allow_module_level=True)

from fake_tensorrt import Machine, reference, with_fake_plan

from ddm_rt.bundle import Bundle
from ddm_rt.engine import user_cache
from ddm_rt.engine.tensorrt.engine import TensorRTRtxEngine
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.runtime import RuntimeConfig
from ddm_rt.sample.loop.tokenizers import Tokenizers
from ddm_rt.sample.pipeline import Pipeline

FAMILIES = ("sd15", "sdxl")
PROMPTS = ["a photo of a doctor", "", "a nurse"]


@pytest.fixture(scope="module")
def planned(latent_bundles: Mapping[str, Bundle], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bundle]:
    """The bundle of a family with a fake plan for sm_89. Read-only."""
    made: dict[str, Bundle] = {}

    def of(family: str) -> Bundle:
        if family not in made:
            folder = tmp_path_factory.mktemp("planned") / family
            made[family] = with_fake_plan(Bundle.load(shutil.copytree(latent_bundles[family].path, folder)))
        return made[family]

    return of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "settings",
    [{}, {"negative_prompt": "blurry", "indicator_guidance_scale": 2.0}, {"codes": [-1, 0, 1, 2, 3]}],
    ids=["joint", "three branches", "codes"],
)
def test_images_on_a_fake_driver_are_onnx_runtimes_to_the_bit(
    machine: Machine, planned: Callable[[str], Bundle], family: str, settings: dict[str, Any]
) -> None:
    bundle = planned(family)
    engine = TensorRTRtxEngine(bundle)
    ours, theirs = Pipeline(bundle, engine), Pipeline(bundle, reference(bundle))
    assert ours.buckets == theirs.buckets
    request: dict[str, Any] = {"prompt": PROMPTS, "n": 5, "seed": 3, "num_steps": 3} | settings
    made, expected = ours.generate(**request), theirs.generate(**request)
    np.testing.assert_array_equal(made.images, expected.images)
    assert len(np.unique(made.images)) > 2
    engine.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_text_on_a_fake_driver_is_onnx_runtimes_to_the_bit(
    machine: Machine, planned: Callable[[str], Bundle], family: str
) -> None:
    bundle = planned(family)
    engine, ids = TensorRTRtxEngine(bundle), Tokenizers(bundle).ids("a nurse")
    made, expected = engine.text_encoder(ids), reference(bundle).text_encoder(ids)
    assert made.keys() == expected.keys() >= {"context"}
    assert ("text_embeds" in made) == (family == "sdxl")
    for name, value in made.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, expected[name])
    with pytest.raises(DdmError, match="text_encoder: input input_ids is missing; given were ids"):
        engine.text_encoder({"ids": ids["input_ids"]})
    with pytest.raises(DdmError, match=r"text_encoder\.plan: input input_ids.* has shape \[1, 7\]; the plan takes"):
        engine.text_encoder({name: value[:, :7] for name, value in ids.items()})
    engine.close()


def test_what_the_conditioner_needs_besides_must_be_given(machine: Machine, planned: Callable[[str], Bundle]) -> None:
    bundle = planned("sdxl")
    engine, width = TensorRTRtxEngine(bundle), bundle.config.context_shape[1]
    given = (np.zeros((1, 77, width), np.float32), np.array([0]), np.ones(1, np.float32))
    with pytest.raises(DdmError, match="conditioner: input text_embeds is missing; given were context, code, indica"):
        engine.conditioner(*given, {"time_ids": np.zeros((1, 6), np.float32)})
    engine.close()


def test_a_prompt_free_bundle_has_no_text_encoder(machine: Machine, tiny_bundle: Bundle, tmp_path: Path) -> None:
    bundle = with_fake_plan(Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle")))
    engine = TensorRTRtxEngine(bundle)
    with pytest.raises(DdmError, match="is prompt-free, so it has no text encoder"):
        engine.text_encoder({})
    engine.close()


def _renamed(config: RuntimeConfig, field: str, name: str) -> RuntimeConfig:
    specs = getattr(config, field)
    key = "input" if field == "text" else "name"
    return config.model_copy(update={field: (specs[0].model_copy(update={key: name}), *specs[1:])})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: _renamed(config, "text", "words"), r"text_encoder\.plan: inputs are .*words.*\(field text\)"),
        (
            lambda config: _renamed(config, "added", "pooled"),
            r"conditioner\.plan: inputs are .*pooled.*\(field added\)",
        ),
        (
            lambda config: config.model_copy(update={"added": config.added[1:]}),
            r"conditioner\.plan: inputs are .*text_embeds.*; the bundle says context, .*_scale, time_ids \(",
        ),
    ],
)
def test_tensors_that_the_bundle_doesnt_name_are_refused(
    machine: Machine, planned: Callable[[str], Bundle], change: Callable[[RuntimeConfig], RuntimeConfig], said: str
) -> None:
    bundle = planned("sdxl")
    with pytest.raises(BundleError, match=said):
        TensorRTRtxEngine(dataclasses.replace(bundle, config=change(bundle.config)))
