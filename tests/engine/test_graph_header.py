"""The reader of ONNX headers agrees with onnx, and refuses everything else in one sentence."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.bundle import Bundle
from ddm_rt.engine.tensorrt import graph_header
from ddm_rt.errors import DdmError

onnx = pytest.importorskip("onnx")


def model(opset: int = 18, domain: str | None = None) -> "onnx.ModelProto":
    make, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((4, 4), np.float32), "w")
    nodes = [make.make_node("MatMul", ["x", "w"], ["h"]), make.make_node("Relu", ["h"], ["y"], "last", domain=domain)]
    sides = ([make.make_tensor_value_info(name, float32, ["batch", 4])] for name in "xy")
    opsets = [make.make_opsetid("", opset)] + ([make.make_opsetid(domain, 1)] if domain else [])
    return make.make_model(make.make_graph(nodes, "g", *sides, [weight]), opset_imports=opsets, ir_version=10)


def save(path: Path, proto: "onnx.ModelProto", data: str | None = None) -> Path:
    if data is None:
        onnx.save(proto, path)
    else:
        onnx.save(proto, path, save_as_external_data=True, location=data, size_threshold=0)
    return path


def test_it_agrees_with_onnx(tiny_bundle: Bundle) -> None:
    for path in tiny_bundle.graphs.values():
        header, proto = graph_header.read(path), onnx.load(path, load_external_data=False)
        assert header.opsets == {opset.domain: opset.version for opset in proto.opset_import}
        assert header.custom_nodes == []
        graph_header.check_external(path, header)


def test_nodes_of_another_domain_are_named(tmp_path: Path) -> None:
    header = graph_header.read(save(tmp_path / "m.onnx", model(domain="ddm_rt")))
    assert header.custom_nodes == [graph_header.Node("ddm_rt", "Relu", "last")]
    assert header.opset == 18


def test_external_data_is_found_missing_or_short(tmp_path: Path) -> None:
    path = save(tmp_path / "m.onnx", model(), data="m.onnx.data")
    header = graph_header.read(path)
    assert header.external == {"m.onnx.data": 64}
    graph_header.check_external(path, header)
    (tmp_path / "m.onnx.data").write_bytes(b"short")
    with pytest.raises(DdmError, match=r"m\.onnx\.data: truncated: 5 bytes; m\.onnx reads 64"):
        graph_header.check_external(path, header)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(DdmError, match=r"m\.onnx\.data: missing or moved; m\.onnx keeps its weights there"):
        graph_header.check_external(path, header)
    with pytest.raises(DdmError, match="expected a file beside it"):
        graph_header.check_external(path, graph_header.Header({"": 18}, (), {"../m.onnx.data": 64}))
    with pytest.raises(DdmError, match="keeps weights in ''; expected a file beside it"):
        graph_header.check_external(path, graph_header.Header({"": 18}, (), {"": 64}))


def test_a_tensor_says_nothing_of_files_unless_it_lies_in_one(tmp_path: Path) -> None:
    proto = model()
    proto.graph.initializer[0].external_data.add(key="location", value="elsewhere")
    assert graph_header.read(save(tmp_path / "m.onnx", proto)).external == {}


@pytest.mark.parametrize("keep", [0, 1, 40, 90])
def test_a_truncated_graph_is_refused(tmp_path: Path, keep: int) -> None:
    path = save(tmp_path / "m.onnx", model())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DdmError, match=r"m\.onnx: not an ONNX graph"):
        graph_header.read(path)


def test_a_missing_graph_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DdmError, match="cannot be read"):
        graph_header.read(tmp_path / "m.onnx")


@given(data=st.data(), content=st.binary(max_size=64))
def test_bytes_of_any_kind_give_a_header_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, content: bytes
) -> None:
    whole = model(domain="ddm_rt").SerializeToString()
    at = data.draw(st.integers(0, len(whole)))
    path = tmp_path_factory.getbasetemp() / "any.onnx"
    path.write_bytes(whole[:at] + content + whole[at + len(content) :])
    with contextlib.suppress(DdmError):
        assert "" in graph_header.read(path).opsets
