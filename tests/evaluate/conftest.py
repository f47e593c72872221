"""A judge small enough to be right by construction."""

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper


@pytest.fixture
def write_judge(tmp_path):
    """Writes an ONNX judge of brightness and returns its path."""

    def write(
        *,
        name="j.onnx",
        shape=("B", 1, 8, 8),
        outputs=("logits", "features"),
        classes=("dark", "light"),
        confusion=((9, 1), (0, 10)),
        metadata=None,
    ):
        """Features: mean m of each channel. Two classes: sign of m. Three: the middle one is |m| < 0.4."""
        logits, features = outputs[0], outputs[1] if len(outputs) > 1 else "hidden"
        channels = shape[1] if isinstance(shape[1], int) else 1
        slope = np.linspace(-100, 100, len(classes), dtype=np.float32)  # of each logit in m
        weight = np.tile(slope, (channels, 1))
        bias = -0.4 * abs(slope) if len(classes) == 3 else 0 * slope
        graph = helper.make_graph(
            [
                helper.make_node("ReduceMean", ["image", "axes"], [features], keepdims=0),
                helper.make_node("MatMul", [features, "weight"], ["product"]),
                helper.make_node("Add", ["product", "bias"], [logits]),
            ],
            "judge",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", width])
                for name, width in zip(outputs, (len(classes), channels), strict=False)
            ],
            [
                helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
                helper.make_tensor("weight", TensorProto.FLOAT, weight.shape, weight.ravel()),
                helper.make_tensor("bias", TensorProto.FLOAT, bias.shape, bias),
            ],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        told = {"classes": classes, "confusion": confusion} if confusion else {"classes": classes}
        stored = {key: json.dumps(value) for key, value in told.items()}
        helper.set_model_props(model, stored if metadata is None else metadata)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return write
