"""ONNX graphs as files: what is read of them, with their weights where they lie."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import TensorProto, external_data_helper, numpy_helper

from ddm_rt.errors import BundleError, DdmError

Array = NDArray[Any]

_FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def read_model(path: Path) -> onnx.ModelProto:
    """The graph at `path`, its external tensors left where they are.

    Raises BundleError where it isn't an ONNX graph, and DdmError where an operator set is newer than the
    installed onnx reads.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except DecodeError as error:
        raise BundleError(f"{path}: not an ONNX graph ({error})") from error
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
