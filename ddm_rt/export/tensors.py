"""Where a graph's weights lie: inside the file, or in a data file beside it that several graphs may share."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from ddm_rt.errors import DdmError

# Bigger graphs keep their tensors in a file beside them: protocol buffers end at 2 GiB, and whoever reads, checks or
# converts a graph holds several copies of what is in it.
MAX_INLINE_BYTES = 2**28
# Smaller tensors (shapes, axes, epsilons) stay in the graph, where builders and shape inference read them.
MIN_EXTERNAL_BYTES = 1024
# Readers map the file into memory; 64 KiB is the coarsest granularity among systems, so large tensors start there.
_ALIGNMENT = 64
_PAGE = 2**16
_LARGE = 2**20

Array = NDArray[Any]


@dataclass(frozen=True)
class Graph:
    """A graph, and the large tensors that it names but doesn't hold: where they already lie in memory, not copied."""

    model: onnx.ModelProto
    weights: Mapping[str, Array] = field(default_factory=dict)  # name of an initializer -> its numbers


def left_out(tensor: TensorProto) -> None:
    """Let `tensor` say that its numbers lie elsewhere; `save` says where."""
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL


def save(graphs: Mapping[Path, Graph], *, shared: bool = False) -> None:
    """Write graphs of one directory and check them.

    Large tensors lie in `<first name>.data` where the graphs are to share them (`shared`) or one file would be too big;
    equal ones (type, shape, bytes) are written once, whatever their names. The models are changed: their large tensors
    lie in them or point into that file afterwards. Equal graphs give equal bytes.

    Raises DdmError where ONNX's full check, strict shape inference included, finds a fault.
    """
    if shared or sum(map(_bytes, graphs.values())) > MAX_INLINE_BYTES:
        first = next(iter(graphs))
        _move_out(graphs.values(), first.with_name(f"{first.name}.data"))
    else:
        _move_in(graphs.values())
    for path, graph in graphs.items():
        path.write_bytes(graph.model.SerializeToString(deterministic=True))
        try:
            onnx.checker.check_model(str(path), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise DdmError(f"{path.name}: the exported graph is not valid ONNX: {error}") from error


def _bytes(graph: Graph) -> int:
    """Bytes of all tensors."""
    inside = sum(len(tensor.raw_data) for tensor in graph.model.graph.initializer)
    return inside + sum(array.nbytes for array in graph.weights.values())


def _move_in(graphs: Iterable[Graph]) -> None:
    for graph in graphs:
        for tensor in graph.model.graph.initializer:
            if tensor.name in graph.weights:
                tensor.raw_data = graph.weights[tensor.name].tobytes()
                tensor.ClearField("data_location")


def _move_out(graphs: Iterable[Graph], data: Path) -> None:
    places: dict[tuple[int, tuple[int, ...], bytes], tuple[int, int]] = {}
    with data.open("wb") as file:
        for graph in graphs:
            for tensor in graph.model.graph.initializer:
                content = _content(tensor, graph.weights)
                if len(content) < MIN_EXTERNAL_BYTES:
                    continue
                key = (tensor.data_type, tuple(tensor.dims), hashlib.sha256(content).digest())
                if key not in places:
                    step = _PAGE if len(content) >= _LARGE else _ALIGNMENT
                    file.seek(-(-file.tell() // step) * step)
                    places[key] = (file.tell(), len(content))
                    file.write(content)
                _point(tensor, data.name, *places[key])


def _content(tensor: TensorProto, weights: Mapping[str, Array]) -> bytes | memoryview:
    if tensor.name not in weights:
        return bytes(tensor.raw_data)
    return np.ascontiguousarray(weights[tensor.name]).reshape(-1).view(np.uint8).data


def _point(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    left_out(tensor)
    del tensor.external_data[:]
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)
