"""ONNX graphs as files: read, written and run, with their weights inside or in a data file beside them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ddm_rt.errors import BundleError, DdmError

Array = NDArray[Any]

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}

# What ONNX Runtime raises for a graph that it can't open or run.
UNRUNNABLE = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)

# Bigger graphs keep their tensors in a file beside them: protocol buffers end at 2 GiB, and whoever reads, checks or
# converts a graph holds several copies of what is in it.
MAX_INLINE_BYTES = 2**28
# Smaller tensors (shapes, axes, epsilons) stay in the graph, where builders and shape inference read them.
MIN_EXTERNAL_BYTES = 1024
# Readers map the file into memory; 64 KiB is the coarsest granularity among systems, so large tensors start there.
_ALIGNMENT = 64
_PAGE = 2**16
_LARGE = 2**20


def parse(path: Path) -> onnx.ModelProto:
    """The graph at `path`, its external tensors left where they are. Raises BundleError where it isn't one."""
    try:
        return onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise BundleError(f"{path}: not an ONNX graph ({error})") from error


def read_model(path: Path) -> onnx.ModelProto:
    """As `parse`. Raises DdmError also where an operator set is newer than the installed onnx reads."""
    model = parse(path)
    newest = onnx.defs.onnx_opset_version()
    for opset in model.opset_import:
        if opset.domain in ("", "ai.onnx") and opset.version > newest:
            raise DdmError(
                f"{path}: operator set {opset.version} is too new: onnx {onnx.__version__} reads up to {newest}"
            )
    return model


def value(tensor: TensorProto, folder: Path) -> Array:
    """The numbers of `tensor`; `folder` is where its graph lies.

    Raises BundleError where its data file is missing, lies elsewhere, or is too short.
    """
    if not external_data_helper.uses_external_data(tensor):
        inside: Array = numpy_helper.to_array(tensor)
        return inside
    info = external_data_helper.ExternalDataInfo(tensor)
    place = PurePosixPath(info.location)
    path = folder / place
    if place.is_absolute() or ".." in place.parts or path.is_symlink():
        raise BundleError(f"{folder}: tensor {tensor.name} lies in {info.location!r}; expected a file beside the graph")
    if not path.is_file():
        raise BundleError(f"{path}: missing; it holds tensor {tensor.name} of a graph beside it")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    count = int(np.prod(tensor.dims, dtype=np.int64))
    offset = info.offset or 0
    needed = count * dtype.itemsize
    if (info.length not in (None, needed)) or path.stat().st_size < offset + needed:
        raise BundleError(f"{path}: too short for tensor {tensor.name}: {needed} bytes at {offset}")
    flat: Array = np.fromfile(path, dtype, count, offset=offset)
    return flat.reshape(tuple(tensor.dims))


# Operators that a layer's weights go into, and which of their inputs they are. A sum or a product may take a constant
# instead. A norm over groups has its weights in those, after one over instances whose weights are ones and zeros.
_TAKE_WEIGHTS = {
    "Conv": (1, 2),
    "Gather": (0,),
    "Gemm": (1, 2),
    "LayerNormalization": (1, 2),
    "MatMul": (1,),
    "Transpose": (0,),
    "Add": (0, 1),
    "Mul": (0, 1),
}


def in_order(model: onnx.ModelProto) -> Iterator[tuple[TensorProto, bool]]:
    """Each use of an initializer that may be a layer's weight, in the order of nodes, and whether the node multiplies
    with it as it lies: a linear layer of torch has it transposed. Layers with equal weights may share an initializer.
    """
    floats = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type in _FLOATS}
    for node in model.graph.node:
        for position in _TAKE_WEIGHTS.get(node.op_type, ()):
            tensor = floats.get(node.input[position]) if position < len(node.input) else None
            if tensor is not None:
                transb = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
                as_it_lies = node.op_type == "MatMul" or (node.op_type == "Gemm" and not transb)
                yield tensor, len(tensor.dims) == 2 and as_it_lies


@dataclass(frozen=True)
class Graph:
    """A graph, and the large tensors that it names but doesn't hold: where they already lie in memory, not copied."""

    model: onnx.ModelProto
    weights: Mapping[str, Array] = field(default_factory=dict)  # name of an initializer -> its numbers


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
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, text in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=text)


def open_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """A session that holds one copy of the weights, mapped where they lie beside the graph; 0 threads: all cores.

    ONNX Runtime would keep a second copy, arranged for its products: that pays over many calls.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
