"""What TensorRT's parser would take wrongly is refused in one sentence."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.bundle import Bundle
from ddm_rt.engine.tensorrt import flavours
from ddm_rt.engine.tensorrt.graph_header import check_graph
from ddm_rt.errors import DdmError

onnx = pytest.importorskip("onnx")

RTX = flavours.TABLE["tensorrt-rtx"]


def model(opset: int = 18, domain: str | None = None) -> "onnx.ModelProto":
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [make.make_node("MatMul", ["x", "w"], ["h"]), make.make_node("Relu", ["h"], ["y"], "last", domain=domain)]
    sides = ([make.make_tensor_value_info(name, float32, ["batch", 4])] for name in "xy")
    opsets = [make.make_opsetid("", opset)] + ([make.make_opsetid(domain, 1)] if domain else [])
    return make.make_model(make.make_graph(nodes, "g", *sides, [weight]), opset_imports=opsets, ir_version=10)


def save(path: Path, proto: "onnx.ModelProto", data: str | None = None) -> Path:
    if data is None:
        path.write_bytes(proto.SerializeToString())
    else:
        onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


@pytest.mark.parametrize("flavour", flavours.TABLE.values(), ids=lambda flavour: flavour.name)
def test_a_bundles_graphs_are_taken(tiny_bundle: Bundle, flavour: flavours.Flavour) -> None:
    for path in tiny_bundle.graphs.values():
        check_graph(path, flavour)


def test_nodes_of_another_domain_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", model(domain="ddm_rt"))
    with pytest.raises(DdmError, match="node 'last' is the plugin Relu; tensorrt-rtx takes no plugins"):
        check_graph(path, RTX)
    check_graph(path, flavours.TABLE["tensorrt"])


def test_a_decoder_in_tiles_is_named(latent_bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    from ddm_rt.export.tiles import tile_decoder

    bundle = tile_decoder(latent_bundles["sd15"], tmp_path / "tiles", 16)
    with pytest.raises(DdmError, match=r"decoder\.onnx: has a loop, as a decoder in tiles does; build the bundle"):
        check_graph(bundle.graphs["decoder"], RTX)
    check_graph(bundle.graphs["denoiser"], RTX)


def test_a_newer_opset_is_named(tmp_path: Path) -> None:
    check_graph(save(tmp_path / "m.onnx", model(22)), RTX)
    with pytest.raises(DdmError, match=r"m\.onnx: ONNX opset 23; tensorrt-rtx takes opsets up to 22"):
        check_graph(save(tmp_path / "m.onnx", model(23)), RTX)


def test_external_data_is_found_missing_or_short(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", model(), data="m.onnx.data")
    check_graph(path, RTX)
    (tmp_path / "m.onnx.data").write_bytes(b"short")
    with pytest.raises(DdmError, match=r"m\.onnx\.data: truncated: 5 bytes; m\.onnx reads 64"):
        check_graph(path, RTX)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(DdmError, match=r"m\.onnx\.data: missing or moved; m\.onnx keeps its weights there"):
        check_graph(path, RTX)


def test_a_name_that_no_file_can_have_is_one_error(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    proto.graph.initializer[0].external_data.add(key="location", value="m" * 300)
    with pytest.raises(DdmError, match=r"mmm: missing or moved"):
        check_graph(save(tmp_path / "m.onnx", proto), RTX)


@pytest.mark.parametrize("location", ["../m.onnx.data", ""])
def test_external_data_lies_beside_the_graph(tmp_path: Path, location: str) -> None:
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    with pytest.raises(DdmError, match=f"keeps weights in '{location}'; expected a file beside it"):
        check_graph(save(tmp_path / "m.onnx", proto), RTX)


@pytest.mark.parametrize(("key", "value"), [("offset", "twelve"), ("length", "-1"), ("offset", "-8")])
def test_a_malformed_place_of_external_data_is_one_error(tmp_path: Path, key: str, value: str) -> None:
    proto = model()
    tensor = proto.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="m.onnx.data")
    tensor.external_data.add(key=key, value=value)
    with pytest.raises(DdmError, match=r"m\.onnx: tensor 'w': malformed place of its data: .*"):
        check_graph(save(tmp_path / "m.onnx", proto), RTX)


def test_weights_inside_a_nodes_own_graph_count(tmp_path: Path) -> None:
    make, inner = onnx.helper, model()
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="lost.data")
    inner.graph.node.append(make.make_node("Constant", [], ["c"], value=tensor))
    outer = model()
    outer.graph.node.append(make.make_node("If", ["x"], ["z"], then_branch=inner.graph))
    with pytest.raises(DdmError, match=r"lost\.data: missing or moved"):
        check_graph(save(tmp_path / "m.onnx", outer), RTX)


def test_a_tensor_says_nothing_of_files_unless_it_lies_in_one(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].external_data.add(key="location", value="elsewhere")
    check_graph(save(tmp_path / "m.onnx", proto), RTX)


@pytest.mark.parametrize("keep", [0, 1, 40, 90])
def test_a_truncated_graph_is_refused(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path / "m.onnx", model())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DdmError, match=r"m\.onnx: not an ONNX graph"):
        check_graph(path, RTX)


def test_a_missing_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="cannot be read"):
        check_graph(tmp_path / "m.onnx", RTX)


@given(data=st.data(), content=st.binary(max_size=64))
def test_bytes_of_any_kind_pass_or_are_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, content: bytes
) -> None:
    proto = model(domain="ddm_rt")
    proto.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    for key in ("location", "offset", "length"):
        proto.graph.initializer[0].external_data.add(key=key, value="12")
    whole = proto.SerializeToString()
    at = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    with contextlib.suppress(DdmError):
        check_graph(path, RTX)
