"""Weights as they lie in a bundle's graphs. Needs no model, so that compiled code starts quickly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.config import Frozen
from ddm_rt.errors import BundleError


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
