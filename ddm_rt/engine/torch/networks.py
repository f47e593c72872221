"""What the engine computes with: a bundle's networks as callables of named tensors, eager or compiled; and the weights
that lie in its graphs. Needs no model, so that compiled code starts quickly.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen, Precision
from ddm_rt.errors import BundleError
from ddm_rt.half import INPUTS
from ddm_rt.runtime import TensorSpec

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def precision_of(dtype: torch.dtype) -> Precision:
    return next(precision for precision, each in DTYPES.items() if each is dtype)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one of them by name, in order, and what it computes in."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: torch.dtype

    def taken(self, name: str, value: Tensor) -> Tensor:
        """A value as the input of that name: in half precision latents are channels-last, as convolutions want them,
        and what sines are taken of stays float32.
        """
        if not value.is_floating_point() or name in INPUTS:
            return value
        layout = torch.channels_last if value.dim() == 4 and self.dtype is not torch.float32 else torch.preserve_format
        return value.to(self.dtype, memory_format=layout)


class Networks(Protocol):
    """By name: `conditioner`, `denoiser`, `decoder`, and `text_encoder` where the bundle takes prompts."""

    device: torch.device
    precision: Precision
    sizes: tuple[int, ...] | None  # of the batches that denoiser and decoder take, ascending; None: any
    signatures: dict[str, Signature]
    cond: tuple[TensorSpec, ...]  # what the conditioner gives: keys and values, ready
    versions: dict[str, str]  # of what computes; the bits depend on it

    def __call__(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs. Raises DdmError for shapes that it doesn't take."""


class Origin(Frozen):
    """Where a weight lies: an initializer of a graph of the bundle."""

    graph: str
    initializer: str
    transposed: bool
    shape: tuple[int, ...]  # that the module has; the initializer's may have ones beside it


def read(bundle: Bundle, origins: Mapping[str, Origin]) -> dict[str, Tensor]:
    """The weights, copied out of the files. Raises BundleError for one that isn't finite."""
    graphs = {graph: graph_files.read_model(bundle.graphs[graph]) for graph in {o.graph for o in origins.values()}}
    tensors = {(graph, t.name): t for graph, model in graphs.items() for t in model.graph.initializer}
    found: dict[str, Tensor] = {}
    for name, origin in origins.items():
        path = bundle.graphs[origin.graph]
        values = graph_files.value(tensors[origin.graph, origin.initializer], path.parent)
        weight = _tensor(values.T if origin.transposed else values).reshape(origin.shape)
        if not torch.isfinite(weight).all():
            raise BundleError(f"{path}: tensor {origin.initializer} ({name}) has non-finite values")
        found[name] = weight
    return found


def _tensor(values: NDArray[Any]) -> Tensor:
    contiguous = np.array(values, order="C")  # torch takes no read-only array
    if contiguous.dtype.name == "bfloat16":  # numpy knows it by its bits alone
        return torch.from_numpy(contiguous.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(contiguous)
