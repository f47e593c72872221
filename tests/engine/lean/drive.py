"""Calls the plugin as TensorRT's builder does, through its real Python bindings over the lean runtime. Not a build.

Run by `test_plugins.py` in a process of its own, with an architecture and a file for its report in JSON. What the lean
runtime lacks, the builder's symbolic sizes and its launch record, is faked here. No `trt.Runtime` is made: deleting one
crashes.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tensorrt as trt
import tensorrt.plugin as trtp
from tensorrt.plugin import _tensor

from ddm_rt.engine.tensorrt import plugins
from ddm_rt.errors import DdmError
from ddm_rt.kernels.indicator_attention.table import tactics

HEADS = 3
SIZES = ({"B": 2, "N": 37, "T": 5, "M": 4}, {"B": 8, "N": 4096, "T": 77, "M": 16})
LARGEST = {"B": 8, "N": 4096, "T": 512, "M": 16}
CASES = (("fp16", 40), ("bf16", 160))
DTYPES = {"fp16": trt.DataType.HALF, "bf16": trt.DataType.BF16, "fp32": trt.DataType.FLOAT}


class Size(trt.IDimensionExpr):
    """A fake of the builder's symbolic size: a number, or a function of the network's sizes."""

    value: Any

    def is_constant(self) -> bool:
        return isinstance(self.value, int)

    def get_constant_value(self) -> int:
        return self.value

    def at(self, sizes: dict[str, int]) -> int:
        return self.value if isinstance(self.value, int) else self.value(sizes)


def size(value: int | str | Callable[[dict[str, int]], int]) -> Size:
    """`value` is a number, the name of a dynamic size, or a function of all of them."""
    made = Size.__new__(Size)  # the bindings give the class no constructor
    made.value = (lambda sizes: sizes[value]) if isinstance(value, str) else value
    return made


OPERATIONS = {
    trt.DimensionOperation.SUM: lambda a, b: a + b,
    trt.DimensionOperation.PROD: lambda a, b: a * b,
    trt.DimensionOperation.CEIL_DIV: lambda a, b: -(-a // b),
}


class Builder:
    """A fake of the builder's arithmetic on symbolic sizes."""

    def constant(self, value: int) -> Size:
        return size(value)

    def operation(self, operation: trt.DimensionOperation, a: Size, b: Size) -> Size:
        apply = OPERATIONS[operation]
        return size(lambda sizes: apply(a.at(sizes), b.at(sizes)))


class Recorded(_tensor.SymExprImpl):
    """What TensorRT would read of an integer: its size, and its type, which the bindings let nobody read back."""

    def __init__(self, expr: Any) -> None:
        super().__init__(expr)
        self.value = expr._expr
        self.bits = 32 if isinstance(expr, trtp.SymInt32) else None


class Launch:
    """A fake of the builder's launch record."""


class Integers(list[Any]):
    """A fake of the builder's list of integer arguments."""

    def __setattr__(self, name: str, value: int) -> None:
        assert name == "nbSymExprs"
        self[:] = [None] * value


def shapes(head_dim: int | str, tokens: int | str) -> dict[str, tuple[int | str, ...]]:
    text, indicator = ("B", "T", HEADS, head_dim), ("B", tokens, HEADS, head_dim)
    return {
        "q": ("B", "N", HEADS, head_dim),
        "k": text,
        "v": text,
        "k_ind": indicator,
        "v_ind": indicator,
        "scale": ("B",),
    }


def tensor(shape: tuple[int | str, ...], dtype: trt.DataType) -> trt.DynamicPluginTensorDesc:
    """As the builder describes a tensor: -1 for what is dynamic, with its least, usual and largest size."""
    desc = trt.PluginTensorDesc()
    desc.dims = [-1 if isinstance(side, str) else side for side in shape]
    desc.type, desc.format, desc.scale = dtype, trt.TensorFormat.LINEAR, 1.0
    made = trt.DynamicPluginTensorDesc()
    made.desc = desc
    made.min = [1 if isinstance(side, str) else side for side in shape]
    made.opt = made.max = [LARGEST.get(side, 1024) if isinstance(side, str) else side for side in shape]
    return made


def new_plugin(request: trt.QuickPluginCreationRequest = trt.QuickPluginCreationRequest.STRICT_AOT) -> Any:
    """What the ONNX parser does at a node with `plugin_namespace` and `aot`."""
    creator = trt.get_plugin_registry().get_creator(plugins.NAME, "1", plugins.NAMESPACE)
    fields = trt.PluginFieldCollection([])
    return creator.create_plugin(plugins.NAME, plugins.NAMESPACE, fields, trt.TensorRTPhase.BUILD, request)


def prepare(
    dtype: str, head_dim: int | str, tokens: int | str = "M", dtype_of_v: str | None = None
) -> tuple[Any, list[Any], list[Any]]:
    """Shape inference: the plugin, its tensors, and the sizes of its output."""
    plugin, builder, tensors = new_plugin(), Builder(), shapes(head_dim, tokens)
    types = [*[DTYPES[dtype]] * 5, trt.DataType.FLOAT]
    types[2] = DTYPES[dtype_of_v or dtype]
    outputs = plugin.get_output_data_types(types, [len(shape) for shape in tensors.values()])
    inputs = [[size(side) for side in shape] for shape in tensors.values()]
    plugin.get_output_shapes(inputs, [], builder)
    in_out = [tensor(shape, kind) for shape, kind in zip(tensors.values(), types, strict=True)]
    in_out.append(tensor(tensors["q"], outputs[0]))
    return plugin, in_out, [side._expr for side in plugin.output_descs[0].shape_expr]


def launch_of(plugin: Any, in_out: list[Any], tactic: int) -> dict[str, Any]:
    """One tactic as the builder takes it: the kernel, and how it would be launched at `SIZES`."""
    plugin.set_tactic(tactic)
    launch, integers = Launch(), Integers()
    plugin.get_launch_params([], in_out, len(in_out) - 1, launch, integers, Builder())
    descs = [entry.desc for entry in in_out]
    entry, ptx = plugin.get_kernel(descs[:-1], descs[-1:])
    return {
        "entry": entry,
        "ptx": ptx.decode(),
        "launch": [{name: value.value.at(sizes) for name, value in vars(launch).items()} for sizes in SIZES],
        "integers": [[value.value.at(sizes) for value in integers] for sizes in SIZES],
        "bits": [value.bits for value in integers],
    }


def case(dtype: str, head_dim: int) -> dict[str, Any]:
    """Everything the builder asks, in its order; in a clone, because the builder keeps copies."""
    plugin, in_out, sides = prepare(dtype, head_dim)
    plugin = plugin.clone()
    combinations = plugin.get_supported_format_combinations(in_out, 6)
    plugin.configure_plugin(in_out[:-1], in_out[-1:])
    offered = sorted(plugin.get_valid_tactics())
    return {
        "output": [[side.at(sizes) for side in sides] for sizes in SIZES],
        "types": [entry.type.name for entry in combinations],
        "formats": sorted({entry.format.name for entry in combinations}),
        "tactics": offered,
        "kernels": {tactic: launch_of(plugin, in_out, tactic) for tactic in offered},
    }


@contextlib.contextmanager
def refused(into: dict[str, str], name: str) -> Iterator[None]:
    try:
        yield
    except (DdmError, ValueError) as error:
        into[name] = f"{type(error).__name__}: {error}"


def refusals() -> dict[str, str]:
    found: dict[str, str] = {}

    def combine(dtype: str, head_dim: int | str, tokens: int | str = "M") -> None:
        plugin, in_out, _ = prepare(dtype, head_dim, tokens)
        plugin.get_supported_format_combinations(in_out, 6)

    with refused(found, "float32"):
        combine("fp32", 40)
    with refused(found, "mixed"):
        plugin, in_out, _ = prepare("fp16", 40, dtype_of_v="bf16")
        plugin.get_supported_format_combinations(in_out, 6)
    with refused(found, "grid"):
        plugin, in_out, _ = prepare("fp16", 40)
        in_out[0].max = [65538 // HEADS, 4096, HEADS, 40]
        plugin.get_supported_format_combinations(in_out, 6)
    with refused(found, "head dim"):
        combine("fp16", 48)
    with refused(found, "dynamic head dim"):
        combine("fp16", "D")
    with refused(found, "indicator tokens"):
        combine("fp16", 40, 17)
    with refused(found, "rank"):
        new_plugin().get_output_data_types([trt.DataType.HALF] * 6, [3, 4, 4, 4, 4, 1])
    with refused(found, "tactic"):
        plugin, in_out, _ = prepare("fp16", 40)
        launch_of(plugin, in_out, 99)
    with refused(found, "just in time"):
        new_plugin(trt.QuickPluginCreationRequest.STRICT_JIT)
    with refused(found, "second target"):
        plugins.register("sm_80")
    with refused(found, "signature"):
        trtp.autotune(plugins.PLUGIN_ID)(lambda k, q, outputs: [])
    return found


def main(architecture: str, report_file: str) -> None:
    found: dict[str, str] = {}
    with refused(found, "architecture"):
        plugins.register("sm_70")
    with refused(found, "ptx version"):
        plugins.register(architecture, ptx_version=50)
    plugins.register(architecture)
    plugins.register(architecture)  # asking again does nothing
    _tensor.SymExprImpl = Recorded
    older = plugins.Target(architecture, ptx_version=87)
    report = {
        "tensorrt": trt.__version__,
        "unavailable": plugins.unavailable(),
        "cases": {f"{dtype}-{head_dim}": case(dtype, head_dim) for dtype, head_dim in CASES},
        "table": {f"{dtype}-{head_dim}": len(tactics(head_dim, dtype, architecture)) for dtype, head_dim in CASES},
        "refused": found | refusals(),
        "older": {tactic: made.ptx for tactic, made in plugins.offered(160, "fp16", older).items()},
    }
    Path(report_file).write_text(json.dumps(report), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
