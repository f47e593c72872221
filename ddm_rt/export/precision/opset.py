"""A graph's operator set, raised to one whose operators take the types that a precision needs."""

from pathlib import Path
from typing import Any

import onnx
from onnx.defs import OpSchema, SchemaError

from ddm_rt.errors import DdmError


def version(model: onnx.ModelProto, path: Path) -> int:
    """The version of ONNX's own operators. Raises DdmError for a graph that names none."""
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            return int(opset.version)
    raise DdmError(f"{path}: names no version of ONNX's operator set")


def raise_to(model: onnx.ModelProto, wanted: int, path: Path) -> None:
    """Let `model` say version `wanted` where it says an older one. Its nodes are not changed.

    That is right only for operators that took on types and optional inputs or attributes in between, which is
    checked: raises DdmError naming an operator whose inputs or attributes became others.
    """
    current = version(model, path)
    for node in model.graph.node if current < wanted else ():
        if node.domain not in ("", "ai.onnx"):
            continue
        try:
            old, new = (onnx.defs.get_schema(node.op_type, at, "") for at in (current, wanted))
        except SchemaError as error:
            raise DdmError(f"{path}: operator {node.op_type} ({node.name}) is not supported: {error}") from error
        if new.deprecated or _signature(old, old) != _signature(new, old):
            raise DdmError(
                f"{path}: operator {node.op_type} ({node.name}) changed between operator sets {current} and {wanted}"
            )
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx"):
            opset.version = max(current, wanted)


def _signature(schema: OpSchema, like: OpSchema) -> Any:
    """What of `schema` an author of `like` knew: leading inputs, outputs, attributes with their defaults."""
    attributes = {
        name: (schema.attributes[name].type, schema.attributes[name].default_value.SerializeToString())
        for name in like.attributes
        if name in schema.attributes
    }
    inputs = [parameter.name for parameter in schema.inputs][: len(like.inputs)]
    return inputs, len(schema.outputs), attributes
