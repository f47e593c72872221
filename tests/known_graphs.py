"""Exports that take the graphs of a bundle for traced: tracing takes seconds, and most tests look at something else."""

from collections.abc import Callable, Container, Mapping

import onnx
from torch import Tensor, nn

from ddm_rt import graph_files
from ddm_rt.bundle import Bundle
from ddm_rt.export import graph

_FIRST_INPUTS = {"input_ids": "text_encoder", "context": "conditioner", "x_t": "denoiser", "x0": "decoder"}


def trace_knowing(bundle: Bundle, fresh: Container[str] = ()) -> Callable[..., graph_files.Graph]:
    """`graph.trace`, but for the graphs of `bundle`, save those named in `fresh` and variants that it hasn't got."""
    trace = graph.trace

    def known(module: nn.Module, inputs: Mapping[str, Tensor], *args: object, **kwargs: object) -> graph_files.Graph:
        name = _FIRST_INPUTS[next(iter(inputs))]
        if name in fresh or kwargs["variant"] != "decomposed":
            return trace(module, inputs, *args, **kwargs)  # type: ignore[arg-type]
        return graph_files.Graph(onnx.load(bundle.graphs[name]))

    return known
