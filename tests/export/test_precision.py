"""Bundles of another precision: what each graph computes in, how far it is from fp32, what is refused."""

import dataclasses
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from denoiser_calls import denoiser_call
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tolerances import PRECISION_REL, WEIGHTS_GREY_LEVELS

from ddm_rt import graph_files
from ddm_rt.bundle import INDEX, WEIGHTS, Bundle, FileEntry
from ddm_rt.config import Precision
from ddm_rt.engine.cpu.ort import OrtEngine
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.export import plugin_node
from ddm_rt.export.plugin_node import PLUGIN_GRAPH
from ddm_rt.export.precision import half, opset
from ddm_rt.export.precision.convert import CALIBRATED, RECIPES, Calibration, convert, convert_graph, quantize
from ddm_rt.export.precision.quantize import Ranges
from ddm_rt.files import sha256
from ddm_rt.sample.pipeline import Pipeline

Calls = list[dict[str, NDArray[np.float32]]]
LAYERS, EVERY = 38, 57  # of the run: that are quantised, and where weights alone are
HALF = {Precision.BF16: TensorProto.BFLOAT16, Precision.INT8_WEIGHTS: TensorProto.FLOAT}
FILES = [
    (precision, name)
    for precision in RECIPES
    for name in ("denoiser.onnx", PLUGIN_GRAPH)
    if (precision, name) != (Precision.INT8_WEIGHTS, PLUGIN_GRAPH)  # whose kernel computes in half precision
]


def relative(found: NDArray, wanted: NDArray) -> float:
    return float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))


@pytest.fixture(scope="module")
def converted(plugin_bundle: Bundle, ranges: Ranges) -> dict[Precision, dict[str, onnx.ModelProto]]:
    """Both variants of the denoiser in every precision, tensors inside."""
    paths = (plugin_bundle.graphs["denoiser"], plugin_bundle.path / PLUGIN_GRAPH)
    return {
        precision: {
            path.name: convert_graph(path, precision, ranges if precision in CALIBRATED else None)
            for path in paths
            if (precision, path.name) in FILES
        }
        for precision in RECIPES
    }


@pytest.mark.parametrize("precision", RECIPES)
def test_how_far_from_fp32(
    tiny_bundle: Bundle, converted: dict[Precision, dict[str, onnx.ModelProto]], precision: Precision
) -> None:
    """On a call that wasn't calibrated with. onnx's own evaluator rounds at every operator, as a GPU does."""
    feeds = denoiser_call(99)
    wanted = ort.InferenceSession(tiny_bundle.graphs["denoiser"]).run(None, feeds)[0]
    on_ort, on_reference = PRECISION_REL[precision]
    model = converted[precision]["denoiser.onnx"]
    found = ReferenceEvaluator(model).run(None, feeds)[0]
    assert found.dtype == np.float32
    assert 0 < relative(found, wanted) < on_reference
    if on_ort is not None:
        found = ort.InferenceSession(model.SerializeToString()).run(None, feeds)[0]
        assert found.dtype == np.float32
        assert 0 < relative(found, wanted) < on_ort
        if PLUGIN_GRAPH in converted[precision]:
            # It holds the same numbers: its layers were calibrated through the other graph.
            spelled = plugin_node.spelled_out(converted[precision][PLUGIN_GRAPH]).SerializeToString()
            again = ort.InferenceSession(spelled).run(None, feeds)[0]
            assert relative(again, wanted) < on_ort


@pytest.mark.parametrize(("precision", "name"), FILES)
def test_what_computes_in_what(
    converted: dict[Precision, dict[str, onnx.ModelProto]], precision: Precision, name: str
) -> None:
    model = converted[precision][name]
    onnx.checker.check_model(model, full_check=True)
    half = HALF.get(precision, TensorProto.FLOAT16)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input, *inferred.output)}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    assert {types[v.name] for v in (*model.graph.input, *model.graph.output)} == {TensorProto.FLOAT}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul", "Softmax"):
            assert {types[value] for value in (*node.input, *node.output)} == {half}, node.name
        if node.op_type in ("Sin", "Cos", "InstanceNormalization"):
            assert {types[value] for value in (*node.input, *node.output)} == {TensorProto.FLOAT}, node.name
        if plugin_node.is_plugin(node):
            assert [types[value] for value in node.input] == [half] * 5 + [TensorProto.FLOAT]
            assert types[node.output[0]] == half
    assert {opset.domain: opset.version for opset in model.opset_import}[""] == RECIPES[precision].opset


def test_a_value_is_cast_once_however_many_use_it(converted: dict[Precision, dict[str, onnx.ModelProto]]) -> None:
    nodes = converted[Precision.FP16]["denoiser.onnx"].graph.node
    casts = Counter((node.input[0], node.attribute[0].i) for node in nodes if node.op_type == "Cast")
    assert max(casts.values()) == 1


@pytest.mark.parametrize("precision", [*CALIBRATED, Precision.INT8_WEIGHTS])
def test_pairs_on_layers_and_nowhere_else(
    converted: dict[Precision, dict[str, onnx.ModelProto]], precision: Precision
) -> None:
    model = converted[precision]["denoiser.onnx"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    maker = {name: node for node in model.graph.node for name in node.output}
    stored = RECIPES[precision].stored
    quantized = 0
    for node in model.graph.node:
        pair = maker.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type in ("Conv", "Gemm", "MatMul") and pair is not None and pair.op_type == "DequantizeLinear":
            quantized += 1
            inputs = RECIPES[precision].inputs
            assert not inputs or node.op_type != "Conv" or "x_t" not in node.input
            before = maker.get(node.input[0])
            assert (before is not None and before.op_type == "DequantizeLinear") == inputs
            assert all(name in weights for name in node.input[2:])  # biases stay
        elif node.op_type == "MatMul" and node.input[1] not in weights:
            operands = {maker[name].op_type for name in node.input if name in maker}
            assert not operands & {"QuantizeLinear", "DequantizeLinear"}  # attention
        elif node.op_type == "DequantizeLinear":
            zero = weights[node.input[2]]
            assert not zero.astype(np.float32).any()
            assert helper.np_dtype_to_tensor_dtype(zero.dtype) == stored
            per_channel = node.input[0] in weights and stored == TensorProto.INT8
            assert (weights[node.input[1]].ndim == 1) == per_channel
    assert quantized == (LAYERS if RECIPES[precision].inputs else EVERY)


def copied(bundle: Bundle, place: Path) -> Bundle:
    shutil.copytree(bundle.path, place)
    return dataclasses.replace(bundle, path=place)


def test_a_bundle_of_its_own(plugin_bundle: Bundle, calls: Calls, tmp_path: Path) -> None:
    done: list[tuple[int, int, str]] = []
    origin = {"images_per_code": {"0": 2}}
    made = convert(
        plugin_bundle,
        tmp_path / "int8",
        Precision.INT8,
        calibration=Calibration(calls, origin),
        progress=lambda *call: done.append(call),
    )
    assert made.config == plugin_bundle.config.model_copy(update={"precision": Precision.INT8})
    assert made.bundle_id != plugin_bundle.bundle_id
    for name in ("training.json", "decoder.onnx"):  # the decoder multiplies nothing
        assert made.index.files[name] == plugin_bundle.index.files[name]
    said = made.index.provenance["precision"]
    assert said["source_bundle_id"] == plugin_bundle.bundle_id
    assert said["calibration"] == origin
    assert said["report"]["quantized_layers"] == {"denoiser.onnx": LAYERS, PLUGIN_GRAPH: LAYERS}
    assert said["report"]["max_abs_difference"].keys() == {"conditioner.onnx", "denoiser.onnx", "decoder.onnx"}
    assert made.index.provenance["parity_max_abs_error"] == plugin_bundle.index.provenance["parity_max_abs_error"]
    assert [call[2] for call in done] == ["conditioner.onnx", "denoiser.onnx", PLUGIN_GRAPH, "decoder.onnx", "done"]
    data = made.index.files["denoiser.onnx.data"].bytes
    assert data < plugin_bundle.index.files["denoiser.onnx.data"].bytes / 2
    again = convert(plugin_bundle, tmp_path / "again", Precision.INT8, calibration=Calibration(calls, origin))
    assert again.bundle_id == made.bundle_id
    with pytest.raises(DdmError, match="field precision is int8; only an fp32 bundle is converted"):
        convert(made, tmp_path / "fp16", Precision.FP16)


def test_weights_alone_in_int8(plugin_bundle: Bundle, tmp_path: Path) -> None:
    """Without a calibration, in float32, and without the plugin's graph, whose kernel computes in half precision."""
    made = convert(plugin_bundle, tmp_path / "weights", Precision.INT8_WEIGHTS)
    assert PLUGIN_GRAPH not in made.index.files
    assert f"{PLUGIN_GRAPH}.data" not in made.index.files
    assert made.config == plugin_bundle.config.model_copy(update={"precision": Precision.INT8_WEIGHTS})
    said = made.index.provenance["precision"]
    assert said["calibration"] is None
    assert said["report"]["quantized_layers"]["denoiser.onnx"] == EVERY
    wanted = Pipeline(plugin_bundle, OrtEngine(plugin_bundle, threads=1)).generate(n=2, seed=1).images
    found = Pipeline(made, OrtEngine(made, threads=1)).generate(n=2, seed=1).images
    assert 0 < np.abs(found.astype(int) - wanted).mean() < WEIGHTS_GREY_LEVELS


def test_weights_and_plans_stay_behind(tiny_bundle: Bundle, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_bundle.path, tmp_path / "exported for torch"))
    (old / WEIGHTS).write_bytes(b"of the float32 graphs")
    files = tiny_bundle.index.files | {WEIGHTS: FileEntry(sha256=sha256(old / WEIGHTS), bytes=21)}
    (old / INDEX).write_text(tiny_bundle.index.model_copy(update={"files": files}).model_dump_json())
    made = convert(Bundle.load(old), tmp_path / "bf16", Precision.BF16)
    assert WEIGHTS not in made.index.files
    assert made.index.provenance["precision"]["report"] == {}  # nothing ran it


def test_int8_needs_a_calibration_set(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="precision int8 needs a calibration set"):
        convert(tiny_bundle, tmp_path / "out", Precision.INT8)
    with pytest.raises(DdmError, match=r"denoiser\.onnx: no calls were recorded"):
        convert(tiny_bundle, tmp_path / "out", Precision.INT8, calibration=Calibration([], {}))
    with pytest.raises(DdmError, match="precision is fp32; expected one of: fp16, bf16, int8, fp8, int8-weights"):
        convert(tiny_bundle, tmp_path / "out", Precision.FP32)
    assert list(tmp_path.iterdir()) == []


def test_calibration_values_that_are_not_finite_are_named(tiny_bundle: Bundle, calls: Calls) -> None:
    broken = calls[0] | {"x_t": np.full_like(calls[0]["x_t"], np.nan)}
    with pytest.raises(DdmError, match=r"denoiser\.onnx: value .* is not finite in calibration"):
        quantize.measure(tiny_bundle.graphs["denoiser"], [broken])


def test_another_graphs_ranges_are_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(DdmError, match=r"denoiser\.onnx: layer with weight .* was not calibrated"):
        convert_graph(tiny_bundle.graphs["denoiser"], Precision.INT8, {"0" * 64: 1.0})


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("damage", "message"), [(lose, r"denoiser\.onnx\.data: missing; it holds tensor"), (cut, "too short for tensor")]
)
@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_external_data_missing_or_short(
    plugin_bundle: Bundle, calls: Calls, tmp_path: Path, damage, message: str, precision: Precision
) -> None:
    bundle = copied(plugin_bundle, tmp_path / "bundle")
    damage(bundle.path / "denoiser.onnx.data")
    with pytest.raises(BundleError, match=message):
        convert(bundle, tmp_path / "out", precision, calibration=Calibration(calls, {}))
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("location", ["../denoiser.onnx.data", "/denoiser.onnx.data"])
def test_external_data_outside_the_bundle_is_refused(plugin_bundle: Bundle, tmp_path: Path, location: str) -> None:
    bundle = copied(plugin_bundle, tmp_path / "bundle")
    path = bundle.graphs["denoiser"]
    model = graph_files.read_model(path)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="expected a file beside the graph"):
        convert(bundle, tmp_path / "out", Precision.FP16)


def test_what_a_graph_may_not_hold(tmp_path: Path) -> None:
    def graph(node: onnx.NodeProto, weight: float = 1.0, version: int = 18, dtype: int = TensorProto.FLOAT) -> Path:
        value = helper.make_tensor_value_info
        made = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], name="product"), node],
            "g",
            [value("x", dtype, ["batch", 1])],
            [value("z", dtype, None)],
            [helper.make_tensor("w", dtype, [1, 1], [weight])],
        )
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", version), helper.make_opsetid("far", 1)])
        (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "g.onnx"

    plain = helper.make_node("Relu", ["y"], ["z"], name="last")
    for make, message in (
        (
            lambda: graph(helper.make_node("Warp", ["y"], ["z"], name="last", domain="far")),
            r"operator far::Warp \(last\)",
        ),
        (
            lambda: graph(helper.make_node("Warp", ["y"], ["z"], name="last")),
            r"operator Warp \(last\) is not supported",
        ),
        (lambda: graph(plain, version=99), "operator set 99 is too new: onnx .* reads up to"),
        (lambda: graph(plain, weight=1e30), r"tensor w holds 1e\+30, beyond the range of float16"),
        (lambda: graph(plain, weight=float("nan")), "tensor w has values that are not numbers"),
        (lambda: graph(plain, dtype=TensorProto.DOUBLE), "is double; expected float32"),
    ):
        path = make()
        with pytest.raises(DdmError, match=message):
            convert_graph(path, Precision.FP16)
    path.write_bytes(b"\xff\xff nothing of ours")
    with pytest.raises(BundleError, match="not an ONNX graph"):
        convert_graph(path, Precision.FP16)


def test_the_lowest_float_of_a_mask_stays_a_mask(tmp_path: Path) -> None:
    lowest = float(np.finfo(np.float32).min)
    value = helper.make_tensor_value_info
    made = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Add", ["y", "mask"], ["z"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 1])],
        [value("z", TensorProto.FLOAT, [1, 2])],
        [
            helper.make_tensor("w", TensorProto.FLOAT, [1, 2], [1, 1]),
            helper.make_tensor("mask", TensorProto.FLOAT, [2], [0, lowest]),
        ],
    )
    path = tmp_path / "g.onnx"
    path.write_bytes(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString())
    model = convert_graph(path, Precision.FP16)
    found = ReferenceEvaluator(model).run(None, {"x": np.ones((1, 1), np.float32)})[0]
    np.testing.assert_array_equal(found, [[1, np.finfo(np.float16).min]])


def test_islands_can_be_chosen(plugin_bundle: Bundle) -> None:
    """As `benchmarks/islands.py` does; by default sines, what they are computed from, and statistics."""
    path = plugin_bundle.graphs["denoiser"]
    model = graph_files.read_model(path)
    opset.raise_to(model, RECIPES[Precision.BF16].opset, path)
    own = half.islands(model)
    kinds = Counter(model.graph.node[number].op_type for number in own)
    assert {"Sin", "Cos", "Mul", "Unsqueeze", "InstanceNormalization"} <= kinds.keys()
    assert not {"Conv", "MatMul", "Gemm", "Softmax"} & kinds.keys()
    casts = []
    for chosen in (own, None, set()):
        made = half.to_half(model, path, TensorProto.BFLOAT16, chosen)
        onnx.checker.check_model(made, full_check=True)
        casts.append(sum(node.op_type == "Cast" for node in made.graph.node))
    assert casts[0] == casts[1] > casts[2] + kinds["InstanceNormalization"]
