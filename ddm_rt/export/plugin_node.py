"""The one node in our graphs that ONNX doesn't define: indicator attention as a TensorRT plugin."""

import onnx

DOMAIN = "ddm_rt"  # of the node, and TensorRT's plugin namespace
PLUGIN = "IndicatorAttention"
PLUGIN_GRAPH = "denoiser.plugin.onnx"  # beside denoiser.onnx, with the same weights

# What the node computes, in ONNX's own operators; shapes as in ddm_rt.kernels.indicator_attention.
_FUNCTION = """
<opset_import: ["" : 18], domain: "ddm_rt">
IndicatorAttention <plugin_namespace, aot> (q, k, v, k_ind, v_ind, scale) => (out) {
    query = Transpose <perm = [0, 2, 1, 3]> (q)
    dim = Shape <start = 3, end = 4> (q)
    width = Cast <to = 1> (dim)
    length = Sqrt (width)
    root = Reciprocal (length)
    factor = CastLike (root, q)

    keys = Mul (k, factor)
    columns = Transpose <perm = [0, 2, 3, 1]> (keys)
    scores = MatMul (query, columns)
    weights = Softmax <axis = -1> (scores)
    rows = Transpose <perm = [0, 2, 1, 3]> (v)
    text = MatMul (weights, rows)

    keys_ind = Mul (k_ind, factor)
    columns_ind = Transpose <perm = [0, 2, 3, 1]> (keys_ind)
    scores_ind = MatMul (query, columns_ind)
    weights_ind = Softmax <axis = -1> (scores_ind)
    rows_ind = Transpose <perm = [0, 2, 1, 3]> (v_ind)
    indicator = MatMul (weights_ind, rows_ind)

    axes = Constant <value_ints = [1, 2, 3]> ()
    scale_like = CastLike (scale, q)
    per_sample = Unsqueeze (scale_like, axes)
    scaled = Mul (per_sample, indicator)
    sum = Add (text, scaled)
    out = Transpose <perm = [0, 2, 1, 3]> (sum)
}
"""


def is_plugin(node: onnx.NodeProto) -> bool:
    return bool(node.domain == DOMAIN and node.op_type == PLUGIN)


def spelled_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the plugin variant in which the node is an ONNX function, so that any runtime can run it.

    For checks only: a builder that inlines functions would never call the plugin.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.functions.append(onnx.parser.parse_function(_FUNCTION))
    return copy
