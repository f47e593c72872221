"""A reference that isn't finite passes no comparison: neither an export's with torch nor a precision's with fp32."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from ddm_rt.errors import DdmError
from ddm_rt.export import graph
from ddm_rt.export import run as run_export
from ddm_rt.export.precision.convert import _difference

BAD = (float("nan"), float("inf"), -float("inf"))


def save_graph(path: Path, factor: float) -> Path:
    """y = factor·x, x [B, 3]."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in "xy")
    constant = helper.make_tensor("factor", TensorProto.FLOAT, [1], [factor])
    body = helper.make_graph([helper.make_node("Mul", ["x", "factor"], ["y"])], "scale", [x], [y], [constant])
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 1])
def test_an_output_of_torch_that_is_not_finite_is_infinitely_far(bad: float, place: int, tmp_path: Path) -> None:
    path, x = save_graph(tmp_path / "scale.onnx", 2.0), torch.ones(1, 3)
    wanted = [torch.full((1, 3), 2.0), torch.full((1, 3), 2.0)]
    assert graph.difference(path, [{"x": x}] * 2, [(output,) for output in wanted]) == 0
    wanted[place][0, 1] = bad
    assert graph.difference(path, [{"x": x}] * 2, [(output,) for output in wanted]) == float("inf")


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("factor", [2.0, *BAD])
def test_an_export_whose_reference_is_not_finite_is_refused(bad: float, factor: float, tmp_path: Path) -> None:
    """Also where the graph's own output is no better: an infinite reference would allow any error."""
    path = save_graph(tmp_path / "scale.onnx", factor)
    with pytest.raises(DdmError, match=r"^scale\.onnx: an output isn't finite, in torch or in the graph"):
        run_export._checked_difference(path, onnx.load(path), [{"x": torch.ones(1, 3)}], [(torch.full((1, 3), bad),)])


@pytest.mark.parametrize("bad", BAD)
def test_a_conversion_whose_source_is_not_finite_is_refused(bad: float, tmp_path: Path) -> None:
    (tmp_path / "converted").mkdir()
    converted = save_graph(tmp_path / "converted" / "scale.onnx", 2.0)
    assert _difference(save_graph(tmp_path / "scale.onnx", 2.0), converted) == 0
    with pytest.raises(DdmError, match=r"scale\.onnx: output y is not finite in the bundle that is converted"):
        _difference(save_graph(tmp_path / "scale.onnx", bad), converted)
    with pytest.raises(DdmError, match=r"scale\.onnx: output y is not finite in this precision"):
        _difference(converted, save_graph(tmp_path / "scale.onnx", bad))


def test_the_largest_difference_is_found_in_any_output(tmp_path: Path) -> None:
    path, x = save_graph(tmp_path / "scale.onnx", 2.0), torch.ones(1, 3)
    wanted = torch.tensor(np.array([[2.0, 2.5, 1.75]], np.float32))
    assert graph.difference(path, [{"x": x}], [(wanted,)]) == 0.5
