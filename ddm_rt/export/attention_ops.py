"""How the custom attention op is written in ONNX: one table of translations, keyed by variant."""

from collections.abc import Callable
from typing import Any

import torch
from onnx.defs import OpSchema
from onnxscript import opset18 as op
from onnxscript import values

# Registers torch.ops.ddm_rt.indicator_attention, which the table names.
import ddm_rt.kernels.indicator_attention.op as _registered  # noqa: F401
from ddm_rt.export.plugin_node import DOMAIN, PLUGIN

Value = Any  # a symbolic ONNX value


def _decomposed(q: Value, k: Value, v: Value, k_ind: Value, v_ind: Value, scale: Value) -> Value:
    """Two softmax attentions from plain MatMul and Softmax; shapes as in the public op.

    1/√D goes on the keys. A scaled query shared by both products crashes the TensorRT-RTX builder.
    """
    root = op.Constant(value_float=float(q.shape[3]) ** -0.5)
    query = op.Transpose(q, perm=[0, 2, 1, 3])  # [B, H, N, D]

    def attend(keys: Value, values: Value) -> Value:
        scaled = op.Transpose(op.Mul(keys, op.CastLike(root, keys)), perm=[0, 2, 3, 1])  # [B, H, D, T]
        weights = op.Softmax(op.MatMul(query, scaled), axis=-1)  # [B, H, N, T]
        return op.MatMul(weights, op.Transpose(values, perm=[0, 2, 1, 3]))  # [B, H, N, D]

    per_sample = op.Unsqueeze(scale, op.Constant(value_ints=[1, 2, 3]))  # [B, 1, 1, 1]
    out = op.Add(attend(k, v), op.Mul(per_sample, attend(k_ind, v_ind)))
    return op.Transpose(out, perm=[0, 2, 1, 3])  # [B, N, H, D]


# The node that TensorRT hands to our plugin: q, k, v, k_ind, v_ind of one type, scale float32.
_SCHEMA = OpSchema(
    PLUGIN,
    DOMAIN,
    1,
    inputs=[
        *(OpSchema.FormalParameter(name, "T") for name in ("q", "k", "v", "k_ind", "v_ind")),
        OpSchema.FormalParameter("scale", "tensor(float)"),
    ],
    outputs=[OpSchema.FormalParameter("out", "T")],
    type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
    attributes=[
        OpSchema.Attribute("plugin_namespace", OpSchema.AttrType.STRING, ""),
        OpSchema.Attribute("aot", OpSchema.AttrType.INT, ""),
    ],
)
_PLUGIN = values.Op(values.Opset(DOMAIN, 1), PLUGIN, _SCHEMA)


def _plugin(q: Value, k: Value, v: Value, k_ind: Value, v_ind: Value, scale: Value) -> Value:
    """One node per layer; `aot` asks TensorRT to keep the compiled kernel in the plan."""
    return _PLUGIN(q, k, v, k_ind, v_ind, scale, plugin_namespace=DOMAIN, aot=1)


# variant -> what torch.onnx.export takes as custom_translation_table.
TRANSLATIONS: dict[str, dict[Callable[..., Any], Callable[..., Any]]] = {
    "decomposed": {torch.ops.ddm_rt.indicator_attention.default: _decomposed},
    "plugin": {torch.ops.ddm_rt.indicator_attention.default: _plugin},
}
