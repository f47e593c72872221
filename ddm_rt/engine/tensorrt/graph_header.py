"""What a build must know of an ONNX file before TensorRT's parser sees it, read from the protobuf without onnx.

The parser takes a newer opset without a word, names neither the graph nor the cause when external data is missing, and
may end the process at a plugin's node. Field numbers are those of onnx.proto; weights are skipped, not read.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ddm_rt.errors import DdmError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types
_MODEL_GRAPH, _MODEL_OPSET = 7, 8
_OPSET_DOMAIN, _OPSET_VERSION = 1, 2
_GRAPH_NODE, _GRAPH_INITIALIZER = 1, 5
_NODE_NAME, _NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 3, 4, 5, 7
_ATTRIBUTE_TENSOR, _ATTRIBUTE_GRAPH = 5, 6
_TENSOR_EXTERNAL, _TENSOR_LOCATION = 13, 14
_IN_A_FILE = 1  # a tensor's location; what a tensor that lies elsewhere says about a file means nothing
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_MAX_DEPTH = 16  # of graphs within nodes

Buffer = memoryview


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
    custom_nodes: tuple[Node, ...]
    external: dict[str, int]

    @property
    def opset(self) -> int:
        return self.opsets.get("", 0)


def read(path: Path) -> Header:
    """The header of the ONNX file at `path`. Raises DdmError where it isn't one, or is truncated."""
    opsets: dict[str, int] = {}
    nodes: list[Node] = []
    external: dict[str, int] = {}
    graphs = 0
    try:
        with path.open("rb") as file:
            # Not closed by hand: views into it live on in an exception's traceback.
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        for field, value in _fields(memoryview(mapped)):
            if field == _MODEL_OPSET:
                domain, version = _opset(_bytes(value))
                opsets["" if domain == "ai.onnx" else domain] = version
            elif field == _MODEL_GRAPH:
                graphs += 1
                _graph(_bytes(value), nodes, external, 0)
    except OSError as error:
        raise DdmError(f"{path}: cannot be read ({error.strerror}); expected an ONNX graph") from error
    except ValueError as error:  # an empty file can't be mapped; _Malformed is one too
        raise DdmError(f"{path}: not an ONNX graph, or truncated: {error}") from error
    if graphs != 1 or "" not in opsets:
        raise DdmError(f"{path}: not an ONNX graph: {graphs} graphs, opsets of {sorted(opsets)}; expected one of each")
    return Header(opsets, tuple(nodes), external)


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


class _Malformed(ValueError):
    pass


def _graph(graph: Buffer, nodes: list[Node], external: dict[str, int], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise _Malformed(f"graphs within nodes are deeper than {_MAX_DEPTH}")
    for field, value in _fields(graph):
        if field == _GRAPH_NODE:
            _node(_bytes(value), nodes, external, depth)
        elif field == _GRAPH_INITIALIZER:
            _tensor(_bytes(value), external)


def _node(node: Buffer, nodes: list[Node], external: dict[str, int], depth: int) -> None:
    text = {_NODE_NAME: "", _NODE_OP: "", _NODE_DOMAIN: ""}
    for field, value in _fields(node):
        if field in text:
            text[field] = _text(value)
        elif field == _NODE_ATTRIBUTE:
            for inner, content in _fields(_bytes(value)):
                if inner == _ATTRIBUTE_GRAPH:
                    _graph(_bytes(content), nodes, external, depth + 1)
                elif inner == _ATTRIBUTE_TENSOR:
                    _tensor(_bytes(content), external)
    if text[_NODE_DOMAIN] not in ("", "ai.onnx"):
        nodes.append(Node(text[_NODE_DOMAIN], text[_NODE_OP], text[_NODE_NAME]))


def _tensor(tensor: Buffer, external: dict[str, int]) -> None:
    entries: dict[str, str] = {}
    location: int | Buffer = 0
    for field, value in _fields(tensor):
        if field == _TENSOR_LOCATION:
            location = value
        elif field == _TENSOR_EXTERNAL:
            pair = {_ENTRY_KEY: "", _ENTRY_VALUE: ""}
            pair |= {inner: _text(content) for inner, content in _fields(_bytes(value)) if inner in pair}
            entries[pair[_ENTRY_KEY]] = pair[_ENTRY_VALUE]
    if location == _IN_A_FILE:
        end = int(entries.get("offset", "0")) + int(entries.get("length", "0"))
        file = entries.get("location", "")
        external[file] = max(end, external.get(file, 0))


def _opset(opset: Buffer) -> tuple[str, int]:
    domain, version = "", 0
    for field, value in _fields(opset):
        if field == _OPSET_DOMAIN:
            domain = _text(value)
        elif field == _OPSET_VERSION and isinstance(value, int):
            version = value
    return domain, version


def _fields(message: Buffer) -> Iterator[tuple[int, int | Buffer]]:
    """(field number, value) of a protobuf message; a varint as int, everything else as its bytes."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        kind = tag & 7
        if kind == _VARINT:
            number, position = _varint(message, position)
            yield tag >> 3, number
            continue
        if kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise _Malformed(f"wire type {kind} at byte {position}")
        if position + length > len(message):
            raise _Malformed(f"a field of {length} bytes, {len(message) - position} are left")
        yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: Buffer, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise _Malformed("it ends within a number")
        byte = message[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise _Malformed(f"a number of more than 10 bytes at byte {position}")


def _bytes(value: int | Buffer) -> Buffer:
    if isinstance(value, int):
        raise _Malformed("a number where a message is expected")
    return value


def _text(value: int | Buffer) -> str:
    return str(_bytes(value), "utf-8")
