"""Int8 and fp8 written into a float32 graph as QuantizeLinear/DequantizeLinear pairs, symmetric, zero point 0.

What is quantised: inputs and weights of convolutions and linear layers. Not the products of attention (both factors
are activations), not biases, not layers that read the graph's inputs or make its output (the first and last
convolution, whose errors nothing averages out, and projections of the few tokens of a prompt), and not the layers that
see nothing but the timestep. Where weights alone are quantised, those of every layer are: their rounding is small.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ddm_rt import graph_files
from ddm_rt.errors import DdmError
from ddm_rt.export.precision import half

Feeds = Mapping[str, NDArray[Any]]  # one call of the graph
Ranges = dict[str, float]  # Layer.key -> largest magnitude of the layer's input

# Largest magnitude of each type; symmetric, so int8 leaves -128 unused.
LARGEST = {TensorProto.INT8: 127.0, TensorProto.FLOAT8E4M3FN: 448.0}
_LARGE_TABLE = 2**20  # numbers in a table of embeddings from which on it is worth four nodes in place of one
# Int8 steps evenly, so each output channel gets its own step; fp8 has an exponent, and engines take one scale.
PER_CHANNEL = frozenset({TensorProto.INT8})


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer with constant weights."""

    node: int  # its number
    input: str
    weight: str
    axis: int  # of the weight's output channels
    key: str  # sha256 of the weight: the same layer in another variant of the graph


def layers(model: onnx.ModelProto, path: Path, *, every: bool = False) -> list[Layer]:
    """The layers of `model` (read from `path`) that are quantised, or `every` one with weights."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    outer = {value.name for value in (*model.graph.input, *model.graph.output)}
    behind = _behind_the_last_layer(model, weights.keys())
    from_image = _downstream(model, "x_t")
    found = []
    for number, node in enumerate(model.graph.node):
        axis = _channel_axis(node)
        if axis is None or node.input[1] not in weights:
            continue
        edge = outer & {node.input[0], node.output[0]}
        timestep_only = node.op_type == "Gemm" and node.input[0] not in from_image
        last = node.op_type == "Conv" and node.output[0] in behind
        if not every and (edge or last or timestep_only):
            continue
        values = graph_files.value(weights[node.input[1]], path.parent)
        key = hashlib.sha256(repr(values.shape).encode() + values.tobytes()).hexdigest()
        found.append(Layer(number, node.input[0], node.input[1], axis, key))
    return found


def _behind_the_last_layer(model: onnx.ModelProto, weights: Collection[str]) -> set[str]:
    """The graph's outputs, and the tensors that they are made of without another layer: steering stands there."""
    found = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if found & set(node.output) and not (_channel_axis(node) is not None and node.input[1] in weights):
            found |= set(node.input)
    return found


def _channel_axis(node: NodeProto) -> int | None:
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return {"Conv": 0, "MatMul": 1}.get(node.op_type)


def _downstream(model: onnx.ModelProto, name: str) -> set[str]:
    reached = {name}
    for node in model.graph.node:
        if reached & set(node.input):
            reached |= set(node.output)
    return reached


def measure(path: Path, calls: Iterable[Feeds], threads: int = 1) -> Ranges:
    """The largest magnitude of every layer's input over the recorded calls of the float32 graph at `path`.

    Deterministic at one thread count: a maximum has no order. Raises DdmError where a value isn't finite or no call is
    given.
    """
    model = graph_files.read_model(path)
    found = layers(model, path)
    watched = sorted({layer.input for layer in found})
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in watched)
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Fused operators would swallow the values.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # The graph is opened from memory: its weights may lie beside the file.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest: dict[str, float] = {}
    for call in calls:
        for name, value in zip(watched, session.run(watched, dict(call)), strict=True):
            largest[name] = max(largest.get(name, 0.0), float(np.abs(value).max()))
            if not np.isfinite(value).all():
                raise DdmError(f"{path}: value {name} is not finite in calibration")
    if not largest:
        raise DdmError(f"{path}: no calls were recorded to calibrate with")
    ranges: Ranges = {}
    for layer in found:
        ranges[layer.key] = max(ranges.get(layer.key, 0.0), largest[layer.input])
    return ranges


def insert(model: onnx.ModelProto, path: Path, ranges: Ranges, kind: int) -> int:
    """Quantise the layers of `model` (read from `path`) to `kind`, INT8 or FLOAT8E4M3FN; returns how many.

    A layer whose input was 0 throughout calibration has no range and stays as it is. Scales are rounded up to what fp16
    holds, so that the graph may be computed in fp16 afterwards and mean the same.
    Raises DdmError for a layer that `ranges` doesn't know.
    """
    missing = [layer.weight for layer in layers(model, path) if layer.key not in ranges]
    if missing:
        raise DdmError(f"{path}: layer with weight {missing[0]} was not calibrated; another graph was")
    found = [layer for layer in layers(model, path) if ranges[layer.key] > 0]
    scale_of: dict[str, float] = {}
    for layer in found:
        scale_of[layer.input] = max(scale_of.get(layer.input, 0.0), ranges[layer.key])
    _rewrite(model, path, found, kind, scale_of)
    return len(found)


def insert_weights(model: onnx.ModelProto, path: Path, kind: int) -> int:
    """Quantise the weights of all layers of `model` (read from `path`), and nothing that passes between them; returns
    how many. All tensors are in `model` afterwards.
    """
    found = layers(model, path, every=True)
    _rewrite(model, path, found, kind, {})
    _quantize_tables(model, path, kind)
    inlined = [half.inlined(tensor, path.parent) for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    model.graph.initializer.extend(inlined)
    return len(found)


def _quantize_tables(model: onnx.ModelProto, path: Path, kind: int) -> None:
    """Tables of embeddings, of which a call takes some rows: each row has its own step, and they alone are restored."""
    tables = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2 and np.prod(tensor.dims) >= _LARGE_TABLE
    }
    users = Counter(name for node in model.graph.node for name in node.input)
    writer = _Writer(kind)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        if node.op_type != "Gather" or axis or node.input[0] not in tables or users[node.input[0]] > 1:
            nodes.append(node)
            continue
        table, rows, out = node.input[0], node.input[1], node.output[0]
        stored, steps = writer.table(table, graph_files.value(tables[table], path.parent))
        nodes += [
            helper.make_node("Gather", [stored, rows], [f"{out}_stored"], name=f"{out}_stored"),
            helper.make_node("Cast", [f"{out}_stored"], [f"{out}_cast"], name=f"{out}_cast", to=TensorProto.FLOAT),
            helper.make_node("Gather", [steps, rows], [f"{out}_steps"], name=f"{out}_steps"),
            _node("Mul", [f"{out}_cast", f"{out}_steps"], out),
        ]
        users[table] = 0
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    kept = [tensor for tensor in model.graph.initializer if tensor.name not in tables or users[tensor.name]]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *writer.initializers])


def _rewrite(
    model: onnx.ModelProto, path: Path, found: Collection[Layer], kind: int, scale_of: Mapping[str, float]
) -> None:
    """Put pairs before the layers `found`: on their weights, and on inputs that `scale_of` knows the range of."""
    at = {layer.node: layer for layer in found}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    writer = _Writer(kind)
    nodes: list[NodeProto] = []
    for number, node in enumerate(model.graph.node):
        if number in at:
            layer = at[number]
            if layer.input in scale_of:
                node.input[0] = writer.activation(layer.input, scale_of[layer.input], nodes)
            weight = graph_files.value(weights[layer.weight], path.parent)
            node.input[1] = writer.weight(layer.weight, weight, layer.axis, nodes)
        nodes.append(node)
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    used = {name for node in copies for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *writer.initializers])


class _Writer:
    """One pair per activation and per weight, however many layers share it."""

    def __init__(self, kind: int) -> None:
        self.kind, self.largest = kind, LARGEST[kind]
        self.dtype = helper.tensor_dtype_to_np_dtype(kind)
        self.initializers: list[TensorProto] = []
        self.made: set[str] = set()

    def activation(self, name: str, magnitude: float, nodes: list[NodeProto]) -> str:
        out = f"{name}_dequantized"
        if out not in self.made:
            self.made.add(out)
            scale, zero = self._scale(name, np.array(magnitude))
            nodes.append(_node("QuantizeLinear", [name, scale, zero], f"{name}_quantized"))
            nodes.append(_node("DequantizeLinear", [f"{name}_quantized", scale, zero], out))
        return out

    def weight(self, name: str, values: NDArray[Any], axis: int, nodes: list[NodeProto]) -> str:
        """The weight as stored integers (or fp8 numbers) and a pair's second half: a quarter of the bytes."""
        out = f"{name}_dequantized"
        if out not in self.made:
            self.made.add(out)
            others = tuple(i for i in range(values.ndim) if i != axis)
            per_channel = self.kind in PER_CHANNEL
            magnitude = np.abs(values).max(axis=others if per_channel else None, initial=0.0)
            scale, zero = self._scale(name, magnitude)
            spread = self._rounded(magnitude)
            if per_channel:
                spread = spread.reshape([-1 if i == axis else 1 for i in range(values.ndim)])
            scaled = np.clip(values / spread, -self.largest, self.largest)
            stored = (np.rint(scaled) if self.kind == TensorProto.INT8 else scaled).astype(self.dtype)
            self.initializers.append(numpy_helper.from_array(stored, f"{name}_quantized"))
            more = {"axis": axis} if per_channel else {}
            nodes.append(_node("DequantizeLinear", [f"{name}_quantized", scale, zero], out, **more))
        return out

    def table(self, name: str, values: NDArray[Any]) -> tuple[str, str]:
        """The rows of a table [N, D] as stored numbers, and their steps [N, 1]."""
        steps = self._rounded(np.abs(values).max(axis=1, keepdims=True, initial=0.0))
        stored = np.rint(values / steps).clip(-self.largest, self.largest).astype(self.dtype)
        self.initializers += [
            numpy_helper.from_array(stored, f"{name}_rows_quantized"),
            numpy_helper.from_array(steps, f"{name}_rows_steps"),
        ]
        return f"{name}_rows_quantized", f"{name}_rows_steps"

    def _scale(self, name: str, magnitude: NDArray[Any]) -> tuple[str, str]:
        scale = self._rounded(magnitude)
        self.initializers += [
            numpy_helper.from_array(scale, f"{name}_scale"),
            numpy_helper.from_array(np.zeros(scale.shape, self.dtype), f"{name}_zero_point"),
        ]
        return f"{name}_scale", f"{name}_zero_point"

    def _rounded(self, magnitude: NDArray[Any]) -> NDArray[np.float32]:
        """magnitude / largest as the next number that fp16 holds; 1 where a channel is all zeros."""
        exact = np.asarray(magnitude, np.float64) / self.largest
        half = np.asarray(exact, np.float16)
        up = np.where(half < exact, np.nextafter(half, np.float16(np.inf)), half)
        return np.where(exact == 0, 1.0, up.astype(np.float64)).astype(np.float32)


def _node(op_type: str, inputs: list[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs, [output], name=output, **attributes)
