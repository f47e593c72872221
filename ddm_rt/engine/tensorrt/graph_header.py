"""What a build must know of an ONNX file before TensorRT's parser sees it.

The parser takes a newer opset without a word, names neither the graph nor the cause when external data is missing, and
may end the process at a plugin's node.
"""

from dataclasses import dataclass, field
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ddm_rt.errors import DdmError

_OWN = ("", "ai.onnx")  # ONNX's own domain


@dataclass(frozen=True)
class Node:
    """An operator that isn't one of ONNX's own."""

    domain: str
    op_type: str
    name: str


@dataclass(frozen=True)
class Header:
    """Opsets by domain ("" is ONNX's own), nodes of other domains, external data: location -> bytes that it needs."""

    opsets: dict[str, int]
    custom_nodes: list[Node] = field(default_factory=list)
    external: dict[str, int] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        return self.opsets.get("", 0)


def read(path: Path) -> Header:
    """The header of the ONNX file at `path`. Raises DdmError where it isn't one, or is truncated."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise DdmError(f"{path}: cannot be read ({error.strerror}); expected an ONNX graph") from error
    except DecodeError as error:
        raise DdmError(f"{path}: not an ONNX graph, or truncated: {error}") from error
    opsets = {"" if each.domain in _OWN else each.domain: each.version for each in model.opset_import}
    if not model.HasField("graph") or "" not in opsets:
        raise DdmError(f"{path}: not an ONNX graph: it has opsets of {sorted(opsets)}; expected a graph and ONNX's own")
    header = Header(opsets)
    _look_at(model.graph, header)
    return header


def check_external(path: Path, header: Header) -> None:
    """Raises DdmError naming the file of external data that is missing, too short, or not beside the graph."""
    for location, needed in header.external.items():
        if not location or Path(location).name != location:
            raise DdmError(f"{path}: keeps weights in {location!r}; expected a file beside it")
        data = path.with_name(location)
        if not data.is_file():
            raise DdmError(f"{data}: missing or moved; {path.name} keeps its weights there")
        if (size := data.stat().st_size) < needed:
            raise DdmError(f"{data}: truncated: {size} bytes; {path.name} reads {needed}")


def _look_at(graph: onnx.GraphProto, header: Header) -> None:
    tensors = list(graph.initializer)
    for node in graph.node:
        if node.domain not in _OWN:
            header.custom_nodes.append(Node(node.domain, node.op_type, node.name))
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if attribute.HasField("g"):
                _look_at(attribute.g, header)
    for tensor in filter(uses_external_data, tensors):
        info = ExternalDataInfo(tensor)
        end = (info.offset or 0) + (info.length or 0)
        header.external[info.location] = max(end, header.external.get(info.location, 0))
