"""What the tests of export variants and precisions share."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from denoiser_calls import denoiser_call
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt.bundle import Bundle
from ddm_rt.export import graph, quantize, tensors


@pytest.fixture(scope="session")
def plugin_bundle(tiny_run: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of `tiny_run` with the plugin variant. Read-only. What `tiny_bundle` traced isn't traced again."""
    from ddm_rt.export.onnx import export_run

    trace = graph.trace

    def known(module: object, inputs: Mapping[str, Tensor], *args: object, **kwargs: object) -> tensors.Graph:
        if kwargs["variant"] == "plugin":
            return trace(module, inputs, *args, **kwargs)  # type: ignore[arg-type]
        name = {"x_t": "denoiser", "x0": "decoder", "context": "conditioner"}[next(iter(inputs))]
        return tensors.Graph(onnx.load(tiny_bundle.graphs[name]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "trace", known)
        return export_run(tiny_run, tmp_path_factory.mktemp("bundles") / "plugin", plugin=True)


@pytest.fixture(scope="session")
def calls() -> list[dict[str, NDArray[np.float32]]]:
    """Calls to calibrate the tiny denoiser with."""
    return [denoiser_call(seed) for seed in range(4)]


@pytest.fixture(scope="session")
def ranges(tiny_bundle: Bundle, calls: list[dict[str, NDArray[np.float32]]]) -> quantize.Ranges:
    return quantize.measure(tiny_bundle.graphs["denoiser"], calls)
