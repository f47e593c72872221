"""What is OpenVINO's own: bf16 and int8 as the graphs say them, and graphs compiled for the shapes of a call."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("openvino")

import openvino as ov
from openvino import opset13 as ops

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.cpu import openvino as backend
from ddm_rt.engine.cpu import openvino_graph
from ddm_rt.engine.cpu.openvino import OpenVinoEngine
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.workflows.export import export

HAS_BF16 = "BF16" in backend._core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
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
    monkeypatch.setattr(backend, "_core", NoBf16)
    config = tiny_bundle.config.model_copy(update={"precision": Precision.BF16})
    reason = OpenVinoEngine.unavailable(dataclasses.replace(tiny_bundle, config=config))
    assert reason == "this CPU has no bf16 instructions, and this bundle is bf16"
    assert OpenVinoEngine.unavailable(tiny_bundle) is None
    assert OpenVinoEngine.unavailable(None) is None


@pytest.mark.slow(reason="compiles a graph for each batch size; the other backends are quick")
@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
def test_an_image_depends_on_no_neighbour(converted: Callable[[Precision], Bundle], precision: Precision) -> None:
    """As of every backend (`sample.loop`); here in low precisions, where sums are in another order soonest."""
    if precision is Precision.BF16 and not HAS_BF16:
        pytest.skip("this CPU has no bf16 instructions")
    bundle = converted(precision)
    engine = OpenVinoEngine(bundle, 1)
    engine.max_batch = 4  # graphs are compiled for each size
    pipeline = Pipeline(bundle, engine)
    whole = pipeline.generate(n=5, seed=3, num_steps=2)
    alone = pipeline.replay(whole.manifest, index=4)
    np.testing.assert_array_equal(alone.images[0], whole.images[4])
    assert whole.manifest["backend"] == "openvino"
    assert whole.manifest["precision"] == precision


def test_keeps_the_shapes_that_are_used(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = OpenVinoEngine(tiny_bundle, 1)
    graph = engine._graphs["decoder"]
    graph._most = 2
    first = {side: engine.decoder(np.ones((1, 4, side, side), np.float32)) for side in (2, 3, 2, 4)}
    assert [shapes[0][2] for shapes in graph._compiled] == [2, 4], "the one that was used longest ago is gone"
    np.testing.assert_array_equal(engine.decoder(np.ones((1, 4, 3, 3), np.float32)), first[3])


def test_a_large_graph_is_kept_once(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_WEIGHT_BYTES", 1)
    assert OpenVinoEngine(tiny_bundle, 1)._graphs["denoiser"]._most == 1


def test_what_was_given_out_stays_as_it_was(tiny_bundle: Bundle) -> None:
    """The library's own buffer is written again by the next call."""
    engine = OpenVinoEngine(tiny_bundle, 1)
    image = engine.decoder(np.zeros((1, 4, 2, 2), np.float32))
    before = image.copy()
    engine.decoder(np.ones((1, 4, 2, 2), np.float32))
    np.testing.assert_array_equal(image, before)


def group_norm(kind: ov.Type, scale: float, side: int) -> ov.Model:
    """A map, its group norm as ONNX's InstanceNormalization is read, and a scale and a shift of each channel."""

    def reshaped(value: ov.Node | ov.Output, *shape: int) -> ov.Node:
        return ops.reshape(value, np.array(shape), special_zero=False)

    def constant(*numbers: float) -> ov.Node:
        return ops.constant(np.array(numbers, np.float32).reshape(-1, 1, 1), dtype=kind)

    x = ops.parameter([2, 4, side, side], ov.Type.f32, name="x")
    norm = ops.convert(reshaped(ops.convert(x, kind), 2, 2, 2 * side * side), ov.Type.f32)
    norm = ops.mvn(norm, np.array([2]), True, 1e-5, "inside_sqrt")
    for operator, number in ((ops.multiply, scale), (ops.add, 0.0)):
        norm = operator(norm, reshaped(ops.constant(np.full(2, number, np.float32)), 1, 2, 1))
    value = reshaped(ops.convert(norm, kind), 2, 4, side, side)
    value = ops.add(ops.multiply(value, constant(1.5, 2, -1, 0.5)), constant(0.25, 0, 1, -3))
    return ov.Model([ops.convert(value, ov.Type.f32)], [x], "group norm")


def infer(model: ov.Model, x: np.ndarray) -> np.ndarray:
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    return ov.Core().compile_model(model, "CPU", settings)(x)[0]


@pytest.mark.parametrize("side", [4, 8, 16])
@pytest.mark.parametrize("kind", [ov.Type.f32, ov.Type.bf16], ids=["f32", "bf16"])
def test_a_tuned_graph_computes_the_same(kind: ov.Type, side: int) -> None:
    if kind == ov.Type.bf16 and not HAS_BF16:
        pytest.skip("this CPU has no bf16 instructions")
    model, tuned = (group_norm(kind, 1.0, side) for _ in range(2))
    openvino_graph.tune(tuned)
    x = normal(np.arange(2, dtype=np.uint64), 0, Stream.INITIAL, (4, side, side))
    np.testing.assert_array_equal(infer(tuned, x), infer(model, x))


def test_casts_around_a_norm_go_only_where_it_changes_nothing() -> None:
    for scale, kind in ((1.0, ov.Type.bf16), (2.0, ov.Type.f32)):
        model = group_norm(ov.Type.bf16, scale, 4)
        openvino_graph.tune(model)
        norms = [node for node in model.get_ordered_ops() if node.get_type_name() == "MVN"]
        assert [norm.get_output_element_type(0) for norm in norms] == [kind], scale


def test_channels_are_spread_over_small_maps_alone() -> None:
    for side, spread in ((4, 2), (8, 2), (16, 0)):
        model = group_norm(ov.Type.f32, 1.0, side)
        openvino_graph.tune(model)
        assert sum(node.get_type_name() == "Broadcast" for node in model.get_ordered_ops()) == spread, side


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 instructions")
def test_the_shipped_model_is_tuned_throughout(
    converted: Callable[[Precision], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And gives the same bits: every norm of it is rounded to bf16 behind its casts."""
    tuned = OpenVinoEngine(converted(Precision.BF16), 1)
    found = call(tuned, 4)
    (request,) = tuned._graphs["denoiser"]._compiled.values()
    norms = [
        node.rt_info["outputPrecisions"].astype(str)
        for node in request.get_compiled_model().get_runtime_model().get_ops()
        if node.rt_info["layerType"].astype(str) == "MVN"
    ]
    assert norms == ["bf16"] * 33
    monkeypatch.setattr(openvino_graph, "tune", lambda model: None)
    np.testing.assert_array_equal(found, call(OpenVinoEngine(converted(Precision.BF16), 1), 4))
