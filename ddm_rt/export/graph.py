"""One torch module as one ONNX graph that holds nothing but what it computes, and its parity with torch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddm_rt import graph_files
from ddm_rt.export import plugin_node
from ddm_rt.export.attention_ops import TRANSLATIONS
from ddm_rt.graph_files import open_session
from ddm_rt.model.parts import Axes
from ddm_rt.quiet import quiet

OPSET = 18


def trace(
    module: nn.Module,
    inputs: Mapping[str, Tensor],
    outputs: Sequence[str],
    free: Axes,
    *,
    variant: str = "decomposed",
    metadata: Mapping[str, str] | None = None,
) -> graph_files.Graph:
    """`module` (in eval mode, called with the inputs in order) as a graph with these input and output names.

    `free` names the dynamic axes of inputs and outputs; the example inputs should hold no 0 or 1 there, which the
    tracer would take for constants. The weights are the module's own memory: change them after the graph is saved.
    Equal modules give equal bytes: no paths, no stack traces, no times.
    """
    dynamic = tuple({axis: free[name][axis] for axis in free.get(name, {})} for name in inputs)
    with quiet("torch.onnx"):
        program = torch.onnx.export(
            _Positional(module).eval(),
            tuple(inputs.values()),
            dynamo=True,
            dynamic_shapes=(dynamic,),
            opset_version=OPSET,
            custom_translation_table=dict(TRANSLATIONS[variant]),
            verbose=False,
            optimize=False,
        )
        assert program is not None
        parameters = list(program.model.graph.initializers.values())
        program.optimize()
    # After optimizing, which may put a node between an input and an output that are one value.
    ends = (*program.model.graph.inputs, *program.model.graph.outputs)
    for value, name in zip(ends, (*inputs, *outputs), strict=True):
        value.name = name
    weights = _leave_out(program.model)
    model: onnx.ModelProto = program.model_proto
    for parameter in parameters:
        parameter.const_value = None  # the optimizer's rules keep the last graph that they saw
    _strip(model)
    _keep_plugin_types(model)
    model.graph.name = "ddm_rt"
    model.producer_name = "ddm_rt"
    model.ClearField("producer_version")
    # The tracer writes an output's size as a formula of the input's; for every size that fits they are equal.
    for value in model.graph.output:
        for axis, name in free.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    onnx.helper.set_model_props(model, dict(metadata or {}))
    return graph_files.Graph(model, weights)


@torch.inference_mode()
def expected(module: nn.Module, cases: Sequence[Mapping[str, Tensor]]) -> list[tuple[Tensor, ...]]:
    """What `module` gives in torch, case by case."""
    found = [module(*case.values()) for case in cases]
    return [out if isinstance(out, tuple) else (out,) for out in found]


def difference(graph: Path, cases: Sequence[Mapping[str, Tensor]], wanted: Sequence[Sequence[Tensor]]) -> float:
    """The largest absolute difference between `graph` on ONNX Runtime and the outputs that are wanted of the cases.

    Infinite where an output's shape differs, or where a value is not finite on either side.
    """
    session = open_session(graph)
    worst = 0.0
    for case, outputs in zip(cases, wanted, strict=True):
        found = session.run(None, {name: tensor.numpy() for name, tensor in case.items()})
        for want, got in zip(outputs, found, strict=True):
            reference = want.numpy()
            if reference.shape != got.shape or not (np.isfinite(reference).all() and np.isfinite(got).all()):
                return float("inf")
            worst = max(worst, float(np.abs(reference - got).max()))
    return worst


def _leave_out(model: ir.Model) -> dict[str, NDArray[Any]]:
    """The large tensors of `model`, in whose place it gets empty ones."""
    found: dict[str, NDArray[Any]] = {}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < graph_files.MIN_EXTERNAL_BYTES:
            continue
        found[name] = tensor.numpy()
        shape = tensor.shape
        assert isinstance(shape, ir.Shape)
        value.const_value = ir.ExternalTensor("", None, None, tensor.dtype, shape=shape, name=name)
    return found


class _Positional(nn.Module):
    """Calls `module` with any number of tensors: one spelling of the dynamic axes fits every module."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        out: Tensor | tuple[Tensor, ...] = self.module(*inputs)
        return out


def _keep_plugin_types(model: onnx.ModelProto) -> None:
    """Drop what shape inference finds by itself; it knows nothing of our own node."""
    outputs = {name for node in model.graph.node if plugin_node.is_plugin(node) for name in node.output}
    kept = [info for info in model.graph.value_info if info.name in outputs]
    for info in kept:
        for dim in info.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")  # a formula in the tracer's own symbols
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)


def _strip(message: Any) -> None:
    """Remove what the tracer says about its source (paths, stack traces, module names), everywhere below."""
    for field, value in message.ListFields():
        if field.name in ("metadata_props", "doc_string"):
            message.ClearField(field.name)
        elif field.type == field.TYPE_MESSAGE:
            for child in [value] if hasattr(value, "ListFields") else value:
                _strip(child)
