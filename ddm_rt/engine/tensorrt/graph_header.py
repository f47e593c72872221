"""What is checked of an ONNX file before TensorRT's parser sees it.

The parser takes a newer opset without a word, names neither the graph nor the cause when external data is missing, and
may end the process at a plugin's node.
"""

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ddm_rt import graph_files
from ddm_rt.engine.tensorrt.flavours import PLUGIN_DOMAIN, Flavour
from ddm_rt.errors import DdmError


def check_graph(path: Path, flavour: Flavour) -> None:
    """Raises DdmError for a graph that the flavour's parser would take wrongly, crash on or refuse without a name: what
    is no ONNX graph, of an opset that is too new, with a plugin or a loop where there are none, and one whose external
    data is missing, too short, or not beside it.
    """
    model = graph_files.parse(path)
    opsets = {"" if each.domain in ("", "ai.onnx") else each.domain: each.version for each in model.opset_import}
    if not model.HasField("graph") or "" not in opsets:
        raise DdmError(f"{path}: not an ONNX graph: it has opsets of {sorted(opsets)}; expected a graph and ONNX's own")
    if opsets[""] > flavour.max_opset:
        raise DdmError(f"{path}: ONNX opset {opsets['']}; {flavour.name} takes opsets up to {flavour.max_opset}")
    for graph in _graphs(model.graph):
        tensors = list(graph.initializer)
        for node in graph.node:
            if node.domain == PLUGIN_DOMAIN and not flavour.plugins:
                name = f"node {node.name!r} is the plugin {node.op_type}"
                raise DdmError(f"{path}: {name}; {flavour.name} takes no plugins")
            # TensorRT-RTX 1.7.1 ends such a build with an internal error. TensorRT hasn't been tried.
            if node.op_type == "Loop":
                raise DdmError(f"{path}: has a loop, as a decoder in tiles does; build the bundle without tiles")
            tensors += [attribute.t for attribute in node.attribute if attribute.HasField("t")]
        for tensor in filter(uses_external_data, tensors):
            _check_external(path, tensor)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and those in its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _check_external(path: Path, tensor: onnx.TensorProto) -> None:
    try:
        info = ExternalDataInfo(tensor)
    except ValueError as error:
        raise DdmError(f"{path}: tensor {tensor.name!r}: malformed place of its data: {error}") from error
    if not info.location or Path(info.location).name != info.location:
        raise DdmError(f"{path}: keeps weights in {info.location!r}; expected a file beside it")
    data, needed = path.with_name(info.location), (info.offset or 0) + (info.length or 0)
    try:
        size = data.stat().st_size if data.is_file() else None
    except OSError:  # a name that can't be one
        size = None
    if size is None:
        raise DdmError(f"{data}: missing or moved; {path.name} keeps its weights there")
    if size < needed:
        raise DdmError(f"{data}: truncated: {size} bytes; {path.name} reads {needed}")
