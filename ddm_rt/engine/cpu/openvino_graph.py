"""A graph of fixed shapes in the form that OpenVINO's CPU plugin runs fastest. It computes the same function."""

from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops

# The most pixels of a map whose scale and shift of each channel are spelled out for every pixel. Measured: maps of 8x8
# and a norm, its scale and shift and SiLU gain a third to a half, of 16x16 they lose some percent.
SPREAD = 64


def tune(model: ov.Model) -> None:
    """Rewrite `model`, whose shapes are fixed, in place. Graphs that have none of the patterns stay as they are."""
    _norms_in_bf16(model)
    _spread_channels(model)
    model.validate_nodes_and_infer_types()


def _norms_in_bf16(model: ov.Model) -> None:
    """Take away the casts around mean-variance normalisation that reads bf16 and is rounded to bf16.

    The plugin's kernel reads and writes either type and computes in float32 (`nodes/mvn.cpp`), so nothing but two
    passes over the map is lost. A bundle says float32 for engines that would sum in bf16.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MVN":
            continue
        source, rounded = node.input_value(0).get_node(), _rounded(node)
        if source.get_type_name() == "Convert" and _is_bf16(source.input_value(0)) and rounded is not None:
            had = node.get_attributes()
            made = ops.mvn(
                source.input_value(0), node.input_value(1), had["normalize_variance"], had["eps"], had["eps_mode"]
            )
            for target in rounded.get_target_inputs():
                target.replace_source_output(made.output(0))


def _rounded(node: Any) -> Any:
    """The output where what `node` gives is bf16 and otherwise unchanged, or None.

    OpenVINO reads ONNX's InstanceNormalization as MVN with a scale and a shift, which are 1 and 0 in a group norm.
    """
    value = node.output(0)
    for operator, neutral in (("Multiply", 1), ("Add", 0)):
        for user in _users(value):
            if user.get_type_name() == operator and _is_constant(user, neutral):
                value = user.output(0)
                break
    casts = [user for user in _users(value) if user.get_type_name() in ("Convert", "ConvertLike")]
    return next((cast.output(0) for cast in casts if _is_bf16(cast.output(0))), None)


def _users(value: Any) -> list[Any]:
    return [target.get_node() for target in value.get_target_inputs()]


def _is_constant(node: Any, number: float) -> bool:
    """Whether the second operand of `node` is this number throughout."""
    operand = node.input_value(1).get_node()
    while operand.get_type_name() in ("Reshape", "Unsqueeze"):
        operand = operand.input_value(0).get_node()
    return operand.get_type_name() == "Constant" and bool(np.all(operand.data == number))


def _is_bf16(value: Any) -> bool:
    return bool(value.get_element_type() == ov.Type.bf16)


def _spread_channels(model: ov.Model) -> None:
    """Let constants [C, 1, 1] beside maps [B, C, H, W] of few pixels have a number for each pixel.

    The plugin's loop over a map that meets one number a channel begins anew with each channel: of 16 or 64 pixels the
    beginning takes most of the time. With a number for each pixel it is one loop over channels and pixels.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() not in ("Multiply", "Add"):
            continue
        for own, other in ((0, 1), (1, 0)):
            constant, shape = node.input_value(own), node.input_value(other).get_partial_shape()
            if constant.get_node().get_type_name() != "Constant" or shape.is_dynamic or len(shape) != 4:
                continue
            _, channels, height, width = shape.to_shape()
            found = list(constant.get_shape())
            one_a_channel = found in ([channels, 1, 1], [1, channels, 1, 1])
            if one_a_channel and 1 < height * width <= SPREAD:
                spread = ops.broadcast(constant, ops.constant(np.array([*found[:-2], height, width], np.int64)))
                node.input(own).replace_source_output(spread.output(0))
