"""What backends on the CPU share: their arrays are numpy's, and the arithmetic between calls is the reference's."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.engine.composed import OfNetworks
from ddm_rt.engine.contract import CPU_PIXELS, check_names, usable_cores
from ddm_rt.engine.devices import CPU_DEVICE, Device
from ddm_rt.engine.machine import engine_code, instruction_set
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.kernels.guided_step import guided_step_reference
from ddm_rt.kernels.projected_guidance import projected_guidance_reference

Array = NDArray[Any]


class HostArrays(OfNetworks):
    """The part of `engine.contract.Engine` that handles arrays, over numpy's."""

    threads: int
    projected_guidance = staticmethod(projected_guidance_reference)

    def guided_step(self, *step: Any) -> tuple[Array, Array]:
        stepped: tuple[Array, Array] = guided_step_reference(*step, threads=self.threads)
        return stepped

    def array(self, host: NDArray[Any]) -> Array:
        return np.ascontiguousarray(host)

    def series(self, host: NDArray[Any]) -> Sequence[Array]:
        return list(np.ascontiguousarray(host))

    def take(self, array: Array, index: NDArray[np.int64]) -> Array:
        return array.take(index, axis=0)

    def concat(self, arrays: Sequence[Array]) -> Array:
        return np.concatenate(arrays)

    def host(self, array: Array) -> NDArray[np.float32]:
        return array


class Graph(Protocol):
    """An open ONNX graph: the names of what it takes and gives, and its outputs for inputs by name."""

    inputs: list[str]
    outputs: list[str]

    def __init__(self, path: Path, threads: int, bundle: Bundle) -> None: ...

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]: ...


class CpuEngine(HostArrays):
    """The engine of a library that runs the bundle's ONNX graphs on the CPU."""

    max_batch = None
    max_pixels = CPU_PIXELS
    backend: ClassVar[str]
    library: ClassVar[str]  # its name in messages
    version: ClassVar[str]
    unreadable: ClassVar[tuple[type[Exception], ...]]  # what it raises for a file that isn't a graph it can run
    refused: ClassVar[tuple[type[Exception], ...]]  # and for inputs that a graph doesn't take
    graph: ClassVar[type[Graph]]  # opens one

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device = CPU_DEVICE) -> None:
        """Raises BundleError for a graph that isn't one, or that doesn't take what the bundle says."""
        self.precision = bundle.config.precision.value
        self.threads = threads or usable_cores()
        self.versions = {self.backend: self.version, "numpy": np.__version__}
        self.machine = f"{instruction_set()}; {engine_code()}"
        self._bundle = bundle
        # The text encoder is opened when the first prompt comes: it is needed for no more than that.
        self._graphs = {name: self._open(name) for name in bundle.graphs if name != "text_encoder"}

    def _open(self, name: str) -> Graph:
        path = self._bundle.graphs[name]
        try:
            graph = self.graph(path, self.threads, self._bundle)
        except self.unreadable as error:
            raise BundleError(f"{path}: not a graph that {self.library} {self.version} runs: {error}") from error
        check_names(self._bundle.config, name, path, graph.inputs, graph.outputs)
        return graph

    def _call(self, name: str, feeds: Mapping[str, Array]) -> dict[str, Array]:
        if name not in self._graphs:
            self._graphs[name] = self._open(name)
        try:
            return self._graphs[name](feeds)
        except self.refused as error:
            shapes = ", ".join(f"{each} {list(value.shape)}" for each, value in feeds.items())
            raise DdmError(f"{name}.onnx refused its inputs ({shapes}): {error}") from error
