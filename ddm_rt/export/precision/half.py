"""A float32 graph computed in fp16 or bf16, but for what `ddm_rt.half` names. Inputs and outputs stay float32, but for
keys and values in fp16: those pass between two graphs, and are large. (numpy has no bf16.)
"""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ddm_rt import graph_files
from ddm_rt.errors import DdmError
from ddm_rt.export import plugin_node
from ddm_rt.export.precision import opset
from ddm_rt.half import STATISTICS, TRIGONOMETRY

# Inputs by position that are float32 whatever the others are.
FLOAT_INPUTS = {("", "Resize"): {2}, (plugin_node.DOMAIN, plugin_node.PLUGIN): {5}}

# Inputs and outputs that are fp16 where the graph is.
HALF_ENDS = ("keys_values",)

_FLOAT = TensorProto.FLOAT
_OTHER_FLOATS = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def to_half(
    model: onnx.ModelProto, path: Path, element_type: int, float32: Collection[int] | None = None
) -> onnx.ModelProto:
    """`model` (read from `path` by `graph_files.read_model`) computed in `element_type`, FLOAT16 or BFLOAT16.

    Float tensors become half. Nodes with the numbers in `float32` stay float32 between casts, by default those of
    `islands`. Tensors of the result lie in the model itself. Raises DdmError naming the operator or tensor for a
    graph that isn't float32 throughout, holds an operator whose type isn't known, or a weight that is beyond the
    type's range.
    """
    types = element_types(model, path)
    return _Conversion(model, path, element_type, types).run(islands(model) if float32 is None else float32)


def islands(model: onnx.ModelProto) -> set[int]:
    """Numbers of the nodes that stay float32: those of `ddm_rt.half`, and all that trigonometry is computed from."""
    maker = {name: number for number, node in enumerate(model.graph.node) for name in node.output}
    found: set[int] = set()
    todo = [number for number, node in enumerate(model.graph.node) if node.op_type in TRIGONOMETRY]
    while todo:
        number = todo.pop()
        if number not in found:
            found.add(number)
            todo += [maker[name] for name in model.graph.node[number].input if name in maker]
    return found | {number for number, node in enumerate(model.graph.node) if node.op_type in STATISTICS}


def element_types(model: onnx.ModelProto, path: Path) -> dict[str, int]:
    """The element type of every value in the graph.

    Raises DdmError naming the first operator that is neither ONNX's nor our own, holds a graph, or whose output's type
    shape inference doesn't find.
    """
    operators = opset.version(model, path)
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph
    except onnx.shape_inference.InferenceError as error:
        raise DdmError(f"{path}: not a valid graph: {error}") from error
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    types: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in values}
    types |= {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for node in model.graph.node:
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if any(attribute.type in (attribute.GRAPH, attribute.GRAPHS) for attribute in node.attribute):
            raise DdmError(f"{path}: operator {operator} ({node.name}) holds a graph of its own; that is not supported")
        known = plugin_node.is_plugin(node) or (
            node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, max_inclusive_version=operators)
        )
        if not known:
            raise DdmError(
                f"{path}: operator {operator} ({node.name}) is not supported: not in operator set {operators}"
            )
        for name in filter(None, node.output):
            if not types.get(name):
                raise DdmError(f"{path}: operator {operator} ({node.name}) is not supported: its type is not known")
    return types


class _Conversion:
    """One pass over the nodes in order; a value's casts and a weight's half copy are made where first needed."""

    def __init__(self, model: onnx.ModelProto, path: Path, element_type: int, types: dict[str, int]) -> None:
        self.path, self.half, self.types = path, element_type, types
        self.dtype = helper.tensor_dtype_to_np_dtype(element_type)
        self.source = model.graph
        self.result = onnx.ModelProto()
        self.result.CopyFrom(model)
        for part in (self.result.graph.node, self.result.graph.initializer):
            del part[:]
        self.weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self.home: dict[str, int] = {}  # value -> the type it is made in
        self.made: set[tuple[str, int]] = set()  # casts and weights that are there
        self.half_ends = set(HALF_ENDS) if element_type == TensorProto.FLOAT16 else set()
        for value in (*self.result.graph.input, *self.result.graph.output):
            if value.name in self.half_ends:
                value.type.tensor_type.elem_type = element_type
        self.home |= {value.name: element_type for value in model.graph.input if value.name in self.half_ends}

    def run(self, float32: Collection[int]) -> onnx.ModelProto:
        for name, kind in self.types.items():
            if kind in _OTHER_FLOATS:
                raise DdmError(f"{self.path}: {name} is {TensorProto.DataType.Name(kind).lower()}; expected float32")
        outputs = {value.name for value in self.source.output}
        for number, node in enumerate(self.source.node):
            self._node(node, outputs, keep=number in float32)
        self._outputs()
        for info in self.result.graph.value_info:
            if self.home.get(info.name) == self.half:
                info.type.tensor_type.elem_type = self.half
        return self.result

    def _node(self, node: NodeProto, outputs: set[str], keep: bool) -> None:
        floats = [name for name in node.input if self.types.get(name) == _FLOAT]
        makes_floats = any(self.types.get(name) == _FLOAT for name in node.output)
        copy = NodeProto()
        copy.CopyFrom(node)
        if makes_floats:
            # What makes floats of no floats (a cast, a constant) keeps its exact values; they are cast where used.
            wanted = _FLOAT if keep or not floats else self.half
        else:
            # A shape is that of any type; a comparison needs its operands alike.
            wanted = None if len(floats) == 1 else _FLOAT
        stays = FLOAT_INPUTS.get((node.domain, node.op_type), set())
        for position, name in enumerate(node.input):
            if self.types.get(name) == _FLOAT:
                as_type = _FLOAT if position in stays else wanted
                copy.input[position] = self._as(name, as_type or self.home.get(name, _FLOAT))
        for position, name in enumerate(node.output):
            if self.types.get(name) == _FLOAT:
                self.home[name] = wanted or _FLOAT
                if name in outputs - self.half_ends and wanted == self.half:
                    copy.output[position] = _named(name, self.half)
                    self.made.add((name, self.half))
        if node.op_type == "Cast" and wanted == self.half:
            next(attribute for attribute in copy.attribute if attribute.name == "to").i = self.half
        self.result.graph.node.append(copy)

    def _as(self, name: str, wanted: int) -> str:
        """The name under which the float value `name` is there in the type `wanted`, which is made if it isn't."""
        if name in self.weights:
            return self._weight(name, wanted)
        alias = _named(name, wanted)
        if (name, wanted) in self.made:
            return alias
        home = self.home.get(name, _FLOAT)
        if wanted == home:
            return name
        # A graph's output made in half has its own name only once it is cast back.
        origin = _named(name, home) if (name, home) in self.made else name
        self.result.graph.node.append(helper.make_node("Cast", [origin], [alias], name=alias, to=wanted))
        self.made.add((name, wanted))
        return alias

    def _weight(self, name: str, wanted: int) -> str:
        made = name if wanted == self.half else _named(name, wanted)
        if (name, wanted) not in self.made:
            self.made.add((name, wanted))
            tensor = numpy_helper.from_array(self._values(name, wanted), made)
            self.result.graph.initializer.append(tensor)
        return made

    def _values(self, name: str, wanted: int) -> NDArray[Any]:
        values = graph_files.value(self.weights[name], self.path.parent)
        if wanted == _FLOAT:
            return values
        if np.isnan(values).any():
            raise DdmError(f"{self.path}: tensor {name} has values that are not numbers")
        lowest = np.finfo(np.float32).min
        if values.size and values.min() == lowest:
            # The customary "minus infinity" of a mask.
            values = np.where(values == lowest, np.float32(_lowest(self.dtype)), values)
        with np.errstate(over="ignore"):
            half: NDArray[Any] = values.astype(self.dtype)
        beyond = np.isinf(half.astype(np.float32)) & np.isfinite(values)
        if beyond.any():
            worst = float(np.abs(values[beyond]).max())
            raise DdmError(f"{self.path}: tensor {name} holds {worst:.6g}, beyond the range of {self.dtype}")
        return half

    def _outputs(self) -> None:
        """Cast what is an output of the graph back; carry over weights of other types."""
        for name in (value.name for value in self.source.output):
            if self.home.get(name) == self.half and name not in self.half_ends:
                node = helper.make_node("Cast", [_named(name, self.half)], [name], name=f"{name}_as_output", to=_FLOAT)
                self.result.graph.node.append(node)
        used = {name for node in self.result.graph.node for name in node.input}
        for name, tensor in self.weights.items():
            if tensor.data_type != _FLOAT and name in used:
                self.result.graph.initializer.append(inlined(tensor, self.path.parent))


def inlined(tensor: TensorProto, folder: Path) -> TensorProto:
    """`tensor` with its numbers in it."""
    return numpy_helper.from_array(graph_files.value(tensor, folder), tensor.name)


def _lowest(dtype: Any) -> float:
    """The most negative finite number of a half type."""
    return -65504.0 if dtype == np.float16 else -3.3895313892515355e38


def _named(name: str, element_type: int) -> str:
    return f"{name}_as_{TensorProto.DataType.Name(element_type).lower()}"
