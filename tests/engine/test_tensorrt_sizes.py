"""Which profile and how many rows a call of a TensorRT engine has, and what an older plan lacks.

On a fake driver and TensorRT: never a run.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("cuda") is None:
    pytest.skip("needs cuda-bindings", allow_module_level=True)

from fake_tensorrt import BATCHES, DECODER_BATCH, Machine, reference, with_fake_plan

from ddm_rt.bundle import Bundle
from ddm_rt.engine import user_cache
from ddm_rt.engine.tensorrt.engine import TensorRTRtxEngine
from ddm_rt.errors import DdmError
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setenv(user_cache.CACHE, str(tmp_path / "cache"))
    return Machine(monkeypatch)


@pytest.fixture(scope="module")
def planned(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("planned") / "bundle"
    return with_fake_plan(Bundle.load(shutil.copytree(tiny_bundle.path, folder)))


def test_a_call_takes_the_profile_whose_best_batch_is_nearest(machine: Machine, planned: Bundle) -> None:
    engine = TensorRTRtxEngine(planned)
    assert Pipeline(planned, engine).buckets == (1, 2, 4, 8)
    used = {c.shapes["x_t"][0]: c.profile for c in machine.trt.contexts if "x_t" in c.shapes}
    assert BATCHES == ((1, 2, 4), (2, 4, 8))
    assert used == {1: 0, 2: 0, 4: 1, 8: 1}
    engine.close()


def test_the_decoder_is_called_with_as_many_rows_as_its_plan_takes(machine: Machine, planned: Bundle) -> None:
    """Whatever the number of images: the bytes are those of one call after another."""
    engine = TensorRTRtxEngine(planned)
    host = np.random.default_rng(0).standard_normal((7, *planned.config.latent_shape)).astype(np.float32)
    image = engine.decoder(engine.array(host))
    sizes = {context.shapes["x0"][0] for context in machine.trt.contexts}
    assert sizes == {1, DECODER_BATCH}
    np.testing.assert_array_equal(
        image, np.concatenate([reference(planned).decoder(host[i : i + 1]) for i in range(7)])
    )
    assert engine.images(engine.array(host)).shape[0] == 7
    engine.close()


def test_a_plan_that_takes_no_single_image_is_called_at_the_sizes_that_it_is_tuned_for(
    machine: Machine, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    own = Bundle.load(shutil.copytree(tiny_bundle.path, tmp_path / "bundle"))
    bundle = with_fake_plan(own, batches=((3, 4, 8), (4, 8, 8)))
    engine = TensorRTRtxEngine(bundle)
    pipeline = Pipeline(bundle, engine)
    assert pipeline.buckets == (4, 8)
    made = pipeline.generate(n=3, num_steps=3)
    expected = Pipeline(bundle, reference(bundle)).generate(n=3, num_steps=3)
    np.testing.assert_array_equal(made.images, expected.images)
    engine.close()


def test_a_plan_of_before_projected_guidance_refuses_it_before_the_loop(
    machine: Machine, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_bundle.path, tmp_path / "bundle")
    old = with_fake_plan(Bundle.load(folder), ops=["guided_step"])
    pipeline = Pipeline(old, TensorRTRtxEngine(old))
    made = pipeline.generate(n=2, num_steps=2)
    assert len(made.images) == 2
    said = r"^apg: the kernels of this tensorrt-rtx plan were made before .*ddm-rt build"
    with pytest.raises(DdmError, match=said), pipeline.prepare(Request(n=2, num_steps=2, apg=(5, 0))):
        pass
    tree = made.manifest | {"request": made.manifest["request"] | {"apg": [5.0, 0.0]}}
    with pytest.raises(DdmError, match=said):
        pipeline.replay(tree)
