"""Scales and stored weights of a quantised layer, number by number."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ddm_rt.export.precision import quantize

KINDS = (TensorProto.INT8, TensorProto.FLOAT8E4M3FN)


def linear(weight: np.ndarray) -> onnx.ModelProto:
    """x -> Identity -> MatMul with `weight` -> Identity, so that the layer is neither first nor last."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["a"]),
            helper.make_node("MatMul", ["a", "w"], ["b"]),
            helper.make_node("Identity", ["b"], ["y"]),
        ],
        "g",
        [value("x", TensorProto.FLOAT, ["batch", weight.shape[0]])],
        [value("y", TensorProto.FLOAT, ["batch", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


@pytest.mark.parametrize("kind", KINDS)
@given(
    weight=arrays(np.float32, (3, 2), elements=st.floats(-100, 100, width=32)),
    magnitude=st.floats(2**-10, 2**14, width=32),
)
def test_scales_are_fp16_and_nothing_is_cut(kind: int, weight: np.ndarray, magnitude: float) -> None:
    model = linear(weight)
    (layer,) = quantize.layers(model, Path("g.onnx"))
    assert quantize.insert(model, Path("g.onnx"), {layer.key: magnitude}, kind) == 1
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("a_scale", "w_scale"):
        assert (tensors[name].astype(np.float16).astype(np.float32) == tensors[name]).all()
        assert (tensors[name] > 0).all()
    assert tensors["a_scale"] * quantize.LARGEST[kind] >= magnitude
    restored = tensors["w_quantized"].astype(np.float32) * tensors["w_scale"]
    # Half a step of integers; of fp8 a sixteenth of the number, or half of the smallest step next to zero.
    step = tensors["w_scale"] / 2
    allowed = step if kind == TensorProto.INT8 else np.maximum(np.abs(weight) / 16, tensors["w_scale"] * 2**-10)
    assert (np.abs(restored - weight) <= allowed * (1 + 1e-6)).all()
    assert "w" not in tensors


@pytest.mark.parametrize("transposed", [0, 1])
def test_each_output_of_a_linear_layer_has_a_scale_of_its_own(transposed: int) -> None:
    """A Gemm's weight is [in, out], or [out, in] with transB."""
    weight = np.array([[1, 10], [2, -30], [-4, 20]], np.float32)  # [in, out]
    model = linear(weight)
    model.graph.input[0].name = "x_t"
    model.graph.node[0].input[0] = "x_t"
    model.graph.node[1].CopyFrom(helper.make_node("Gemm", ["a", "w"], ["b"], transB=transposed))
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight.T.copy() if transposed else weight, "w"))
    (layer,) = quantize.layers(model, Path("g.onnx"))
    quantize.insert(model, Path("g.onnx"), {layer.key: 1.0}, TensorProto.INT8)
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # The least that fp16 holds and that takes the output's largest weight.
    scales = tensors["w_scale"].ravel().astype(np.float16)
    assert (scales.astype(np.float64) * 127 >= [4, 30]).all()
    assert (np.nextafter(scales, np.float16(0)).astype(np.float64) * 127 < [4, 30]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_that_fits_the_type_exactly_is_not_changed(kind: int) -> None:
    weight = np.array([[1, -2], [0.5, 4]], np.float32) * np.float32(quantize.LARGEST[kind] / 4)
    model = linear(weight if kind != TensorProto.INT8 else np.array([[127, -127], [3, 8]], np.float32))
    x = np.array([[1, quantize.LARGEST[kind]]], np.float32)
    wanted = ReferenceEvaluator(model).run(None, {"x": x})[0]
    (layer,) = quantize.layers(model, Path("g.onnx"))
    quantize.insert(model, Path("g.onnx"), {layer.key: float(x.max())}, kind)
    np.testing.assert_array_equal(ReferenceEvaluator(model).run(None, {"x": x})[0], wanted)


def test_a_layer_that_saw_nothing_stays_as_it_is() -> None:
    model = linear(np.ones((2, 2), np.float32))
    before = model.SerializeToString()
    (layer,) = quantize.layers(model, Path("g.onnx"))
    assert quantize.insert(model, Path("g.onnx"), {layer.key: 0.0}, TensorProto.INT8) == 0
    assert model.SerializeToString() == before


def test_ranges_are_the_largest_magnitudes_of_all_calls(tmp_path: Path) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(linear(np.ones((2, 2), np.float32)).SerializeToString())
    calls = [{"x": np.array([row], np.float32)} for row in ([1, -7], [3, 2], [0, 0])]
    assert list(quantize.measure(path, calls).values()) == [7.0]


def test_the_last_layer_and_the_first_are_left_alone(tmp_path: Path) -> None:
    model = linear(np.ones((2, 2), np.float32))
    nodes = list(model.graph.node)
    nodes[1].input[0] = "x"
    assert quantize.layers(model, tmp_path / "g.onnx") == []
    nodes[1].input[0], nodes[1].output[0] = "a", "y"
    del model.graph.node[2]
    assert quantize.layers(model, tmp_path / "g.onnx") == []
