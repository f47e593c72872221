"""OpenVINO on the CPU: what computes bf16 and int8 bundles in bf16 and int8. Arrays are numpy's."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import openvino as ov

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.cpu import openvino_graph
from ddm_rt.engine.cpu.openvino_cache import CompiledGraphs
from ddm_rt.engine.devices import CPU_DEVICE, Device
from ddm_rt.engine.host import Array, CpuEngine

_DEVICE = "CPU"
# A graph that is compiled for the shapes of its call is up to twice as fast as one with free axes, and holds a copy of
# its weights for each: so many are kept, and of large models as many as fit into these bytes, the last one always.
_SHAPES, _WEIGHT_BYTES = 16, 2**31

_Shapes = tuple[tuple[int, ...], ...]


class _Graph:
    """One graph, compiled when it is called: denoiser and decoder for the shapes of the call, others once for all."""

    def __init__(self, path: Path, threads: int, bundle: Bundle) -> None:
        self._fixed = path.stem in ("denoiser", "decoder")
        self._model = _core().read_model(path)
        self.inputs = [str(port.get_any_name()) for port in self._model.inputs]
        self.outputs = [str(port.get_any_name()) for port in self._model.outputs]
        size = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.exists())
        self._most = max(1, min(_SHAPES, _WEIGHT_BYTES // size))
        settings = {
            # Of what the graph leaves float32; by default the plugin computes that in bf16 too.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # Pinned threads of two processes, or of a server and its batch job, would share cores while others idle.
            "ENABLE_CPU_PINNING": False,
        }
        self._kept = CompiledGraphs(_core(), _DEVICE, path, bundle.bundle_id, settings)
        self._compiled: OrderedDict[_Shapes, ov.InferRequest] = OrderedDict()
        self._lock = threading.Lock()  # a request computes one call at a time

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        with self._lock:
            request = self._request(tuple(arrays[name].shape for name in self.inputs) if self._fixed else ())
            found = request.infer(arrays, share_inputs=True)
            return {name: found[k] for k, name in enumerate(self.outputs)}

    def _request(self, shapes: _Shapes) -> ov.InferRequest:
        if shapes in self._compiled:
            self._compiled.move_to_end(shapes)
            return self._compiled[shapes]
        while len(self._compiled) >= self._most:  # before the next takes its memory
            self._compiled.popitem(last=False)
        model = self._model.clone()
        if shapes:
            model.reshape(dict(zip(self.inputs, map(list, shapes), strict=True)))
            openvino_graph.tune(model)
        self._compiled[shapes] = self._kept.compile(model, shapes).create_infer_request()
        return self._compiled[shapes]


class OpenVinoEngine(CpuEngine):
    """`engine.contract.Engine` on OpenVINO's CPU plugin.

    It computes in what the bundle's graphs say: bf16 and int8 as such on a CPU that has instructions for them, fp16 and
    fp8 as float32 with weights that were rounded. What it takes and gives is float32. Compiled graphs are kept for the
    next process in the user's cache, where they aren't large (`openvino_cache.py`).
    """

    backend = "openvino"
    library, version = "OpenVINO", ov.__version__
    unreadable = refused = (RuntimeError,)
    graph = _Graph

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device = CPU_DEVICE) -> str | None:
        """Why this backend can't run `bundle`, or None."""
        capabilities = _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if bundle is not None and bundle.config.precision is Precision.BF16 and "BF16" not in capabilities:
            return "this CPU has no bf16 instructions, and this bundle is bf16"
        return None


@cache
def _core() -> ov.Core:
    """One for the process: it holds no bundle's state."""
    return ov.Core()
