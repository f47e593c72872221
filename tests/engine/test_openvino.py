"""What is OpenVINO's own: bf16 and int8 as the graphs say them, and graphs compiled for the shapes of a call."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.cpu import openvino
from ddm_rt.engine.cpu.openvino import OpenVinoEngine
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.workflows.export import export

HAS_BF16 = "BF16" in openvino._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
# RMS error of one denoiser call of the shipped bundle on noise, relative to fp32: about three times what was found.
ERROR = {Precision.BF16: 1e-2, Precision.INT8: 4e-2, Precision.FP16: 1e-3}


class NoBf16:
    def get_property(self, device: str, name: str) -> list[str]:
        return ["FP32", "INT8"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Precision], Bundle]:
    """The shipped bundle in another precision."""
    made: dict[Precision, Bundle] = {}

    def convert(precision: Precision) -> Bundle:
        if precision not in made:
            folder: Path = tmp_path_factory.mktemp("converted") / precision
            made[precision] = export("digits", folder, precision, calibration_images=8)
        return made[precision]

    return convert


def call(engine: OpenVinoEngine | OrtEngine, batch: int) -> np.ndarray:
    ones = np.ones(batch, np.float32)
    cond = engine.conditioner(np.zeros((batch, 1, 64), np.float32), np.arange(batch) % 16, ones, {})
    x = normal(np.arange(batch, dtype=np.uint64), 0, Stream.INITIAL, (16, 8, 8))
    return engine.denoiser(x, np.linspace(990, 10, batch, dtype=np.float32), cond)


@pytest.mark.parametrize("precision", list(ERROR))
def test_computes_what_the_bundle_says(converted: Callable[[Precision], Bundle], precision: Precision) -> None:
    if precision is Precision.BF16 and not HAS_BF16:
        pytest.skip("this CPU has no bf16 instructions")
    engine = OpenVinoEngine(converted(precision), 1)
    assert engine.precision == precision
    expected, found = call(OrtEngine(Bundle.load("digits"), 1), 4), call(engine, 4)
    assert found.dtype == np.float32
    error = float(np.sqrt(((found - expected) ** 2).mean() / (expected**2).mean()))
    assert 0 < error < ERROR[precision]


def test_bf16_needs_instructions(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_core", NoBf16)
    config = tiny_bundle.config.model_copy(update={"precision": Precision.BF16})
    reason = OpenVinoEngine.unavailable(dataclasses.replace(tiny_bundle, config=config))
    assert reason == "this CPU has no bf16 instructions, and this bundle is bf16"
    assert OpenVinoEngine.unavailable(tiny_bundle) is None
    assert OpenVinoEngine.unavailable(None) is None


@pytest.mark.slow(reason="compiles a graph for each batch size; the other backends are quick")
def test_an_image_depends_on_no_neighbour(converted: Callable[[Precision], Bundle]) -> None:
    """As of every backend (`sample.loop`); here in the lowest precision, where sums are in another order soonest."""
    bundle = converted(Precision.INT8)
    engine = OpenVinoEngine(bundle, 1)
    engine.max_batch = 4  # graphs are compiled for each size
    pipeline = Pipeline(bundle, engine)
    whole = pipeline.generate(n=5, seed=3, num_steps=2)
    alone = pipeline.replay(whole.manifest, index=4)
    np.testing.assert_array_equal(alone.images[0], whole.images[4])
    assert whole.manifest["backend"] == "openvino"
    assert whole.manifest["precision"] == "int8"


def test_keeps_the_shapes_that_are_used(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(tiny_bundle, 1)
    graph = engine._graphs["decoder"]
    graph._most = 2
    first = {side: engine.decoder(np.ones((1, 4, side, side), np.float32)) for side in (2, 3, 2, 4)}
    assert [shapes[0][2] for shapes in graph._compiled] == [2, 4], "the one that was used longest ago is gone"
    np.testing.assert_array_equal(engine.decoder(np.ones((1, 4, 3, 3), np.float32)), first[3])


def test_a_large_graph_is_kept_once(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino, "_WEIGHT_BYTES", 1)
    assert OpenVinoEngine(tiny_bundle, 1)._graphs["denoiser"]._most == 1


def test_what_was_given_out_stays_as_it_was(tiny_bundle: Bundle) -> None:
    """The library's own buffer is written again by the next call."""
    engine = OpenVinoEngine(tiny_bundle, 1)
    image = engine.decoder(np.zeros((1, 4, 2, 2), np.float32))
    before = image.copy()
    engine.decoder(np.ones((1, 4, 2, 2), np.float32))
    np.testing.assert_array_equal(image, before)
