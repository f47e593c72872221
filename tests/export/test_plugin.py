"""The variant for TensorRT's plugin: one node per layer, the same weights, the same numbers once spelled out."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from denoiser_calls import denoiser_call
from tolerances import EXPORT_FP32_ABS

from ddm_rt.bundle import GRAPHS, Bundle, bundle_id
from ddm_rt.export import plugin_node
from ddm_rt.export.plugin_node import DOMAIN, PLUGIN, PLUGIN_GRAPH
from ddm_rt.export.precision.convert import convert_graph

CROSS_ATTENTIONS = 3  # one on the way down, two on the way up


@pytest.fixture(scope="module")
def plugin_graph(plugin_bundle: Bundle) -> onnx.ModelProto:
    return onnx.load(plugin_bundle.path / PLUGIN_GRAPH, load_external_data=False)


def test_one_node_per_layer_says_who_runs_it(plugin_graph: onnx.ModelProto) -> None:
    nodes = [node for node in plugin_graph.graph.node if node.domain]
    assert len(nodes) == CROSS_ATTENTIONS
    for node in nodes:
        assert (node.domain, node.op_type) == (DOMAIN, PLUGIN)
        assert len(node.input) == 6
        assert node.input[5] == "code_scale"
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"plugin_namespace": b"ddm_rt", "aot": 1}
    assert {opset.domain: opset.version for opset in plugin_graph.opset_import} == {"": 18, DOMAIN: 1}
    assert not plugin_graph.functions


def test_both_graphs_read_their_weights_from_one_file(plugin_bundle: Bundle, plugin_graph: onnx.ModelProto) -> None:
    places = []
    for model in (plugin_graph, onnx.load(plugin_bundle.graphs["denoiser"], load_external_data=False)):
        external = [tensor for tensor in model.graph.initializer if tensor.data_location == onnx.TensorProto.EXTERNAL]
        places.append({tuple(sorted((e.key, e.value) for e in tensor.external_data)) for tensor in external})
        assert all(len(t.raw_data) < 1024 for t in model.graph.initializer if t not in external)
    assert places[0] == places[1]
    assert {dict(place)["location"] for place in places[0]} == {"denoiser.onnx.data"}
    used = sum(int(dict(place)["length"]) for place in places[0])
    assert used <= plugin_bundle.index.files["denoiser.onnx.data"].bytes <= used + 64 * len(places[0])


def test_the_bundle_id_covers_the_weights_but_not_the_variant(plugin_bundle: Bundle) -> None:
    files = plugin_bundle.index.files
    assert {"denoiser.onnx.data", PLUGIN_GRAPH} <= files.keys()
    without = {name: entry for name, entry in files.items() if name != PLUGIN_GRAPH}
    assert bundle_id(without) == plugin_bundle.bundle_id
    altered = files["denoiser.onnx.data"].model_copy(update={"sha256": "0" * 64})
    assert bundle_id(files | {"denoiser.onnx.data": altered}) != plugin_bundle.bundle_id


def test_nothing_is_left_of_the_check_against_torch(plugin_bundle: Bundle) -> None:
    parity = plugin_bundle.index.provenance["parity_max_abs_error"]
    assert parity.keys() == {"conditioner", "denoiser", "denoiser.plugin", "decoder"}
    assert max(parity.values()) <= EXPORT_FP32_ABS
    assert not [path for path in plugin_bundle.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("batch", "size", "tokens"), [(1, (8, 8), 1), (5, (6, 10), 7)])
def test_spelled_out_it_is_the_decomposed_graph(
    plugin_bundle: Bundle, plugin_graph: onnx.ModelProto, tmp_path: Path, batch: int, size: tuple[int, int], tokens: int
) -> None:
    spelled = tmp_path / "spelled.onnx"
    spelled.write_bytes(plugin_node.spelled_out(plugin_graph).SerializeToString())
    (tmp_path / "denoiser.onnx.data").write_bytes((plugin_bundle.path / "denoiser.onnx.data").read_bytes())
    feeds = denoiser_call(batch, batch, size, tokens)
    found, wanted = (ort.InferenceSession(p).run(None, feeds)[0] for p in (spelled, plugin_bundle.graphs["denoiser"]))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=EXPORT_FP32_ABS)


def test_a_plain_runtime_refuses_the_node_by_name(plugin_bundle: Bundle) -> None:
    with pytest.raises(Exception, match=f"{DOMAIN}:{PLUGIN}"):
        ort.InferenceSession(plugin_bundle.path / PLUGIN_GRAPH)


def multiplied_queries(model: onnx.ModelProto) -> list[str]:
    """Left factors of two or more products of activations that an elementwise operator made."""
    nodes = [node for function in model.functions for node in function.node] or list(model.graph.node)
    weights = {tensor.name for tensor in model.graph.initializer}
    maker = {name: node for node in nodes for name in node.output}

    def origin(name: str) -> str:
        """Before moves and casts: a scale applied there would be shared all the same."""
        while name in maker and maker[name].op_type in ("Transpose", "Reshape", "Cast", "Identity"):
            name = maker[name].input[0]
        return name

    lefts = Counter(
        origin(node.input[0]) for node in nodes if node.op_type == "MatMul" and node.input[1] not in weights
    )
    shared = [name for name, count in lefts.items() if count > 1]
    assert shared, "no query is shared: the test would pass on anything"
    return [name for name in shared if name in maker and maker[name].op_type in ("Mul", "Div")]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_no_scale_on_a_query_that_two_products_share(tiny_bundle: Bundle, precision: str) -> None:
    """The TensorRT-RTX builder crashes on one. Self-attention scales its query too, for one product."""
    path = tiny_bundle.graphs["denoiser"]
    model = onnx.load(path) if precision == "fp32" else convert_graph(path, precision)  # type: ignore[arg-type]
    assert multiplied_queries(model) == []


def test_nor_in_what_the_node_is_spelled_out_as(plugin_graph: onnx.ModelProto) -> None:
    assert multiplied_queries(plugin_node.spelled_out(plugin_graph)) == []


def test_the_variant_says_nothing_of_its_origin(plugin_bundle: Bundle) -> None:
    content = (plugin_bundle.path / PLUGIN_GRAPH).read_bytes()
    for word in (b"pkg.torch", b"stack_trace", b".py", b"site-packages"):
        assert word not in content
    assert set(GRAPHS) < plugin_bundle.index.files.keys()
    assert json.loads((plugin_bundle.path / "runtime.json").read_text())["precision"] == "fp32"
