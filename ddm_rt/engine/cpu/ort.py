"""ONNX Runtime on the CPU. Arrays are numpy's."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.devices import CPU_DEVICE, Device
from ddm_rt.engine.host import Array, CpuEngine
from ddm_rt.engine.ort.binding import Addressed, BoundSession, Place, Shape
from ddm_rt.engine.ort.sessions import CPU_PROVIDER, open_session

# What ONNX Runtime raises for a file that isn't a graph it can run; judges are opened with it too.
UNREADABLE = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
)
REFUSED = (RuntimeError, ort_errors.Fail, ort_errors.InvalidArgument)  # and for inputs that it doesn't take
_KEPT_SHAPES = 256


class _Graph:
    """One graph, opened."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = BoundSession(open_session(path, threads), Place("cpu"))
        self.inputs, self.outputs = list(self._session.inputs), list(self._session.outputs)
        self._shapes: OrderedDict[tuple[Shape, ...], dict[str, Shape]] = OrderedDict()  # of outputs, by the inputs'
        self._lock = threading.Lock()  # a binding is of one call at a time

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        given = {name: _addressed(array) for name, array in arrays.items()}
        key = tuple(array.shape for array in arrays.values())
        with self._lock:
            if key not in self._shapes:
                first = {name: value.numpy() for name, value in self._session.first(given).items()}
                self._shapes[key] = {name: array.shape for name, array in first.items()}
                if len(self._shapes) > _KEPT_SHAPES:
                    self._shapes.popitem(last=False)
                return first
            dtypes = self._session.outputs
            made = {name: np.empty(shape, dtypes[name]) for name, shape in self._shapes[key].items()}
            self._session.run(given, {name: _addressed(array) for name, array in made.items()})
        return made


class OrtEngine(CpuEngine):
    """`engine.contract.Engine` on ONNX Runtime's CPU provider.

    What it takes and gives is float32 whatever the bundle's precision. Its arithmetic on x86 is float32 too: it rounds
    to fp16, int8 or fp8 where the graph says so, or later, so such a bundle shows its images here but no speed.
    """

    backend = "onnxruntime"
    library, version = "ONNX Runtime", ort.__version__
    unreadable, refused = UNREADABLE, REFUSED
    graph = _Graph

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device = CPU_DEVICE) -> str | None:
        """Why this backend can't run `bundle`, or None."""
        if CPU_PROVIDER not in ort.get_available_providers():
            return f"this build of onnxruntime has no {CPU_PROVIDER}"
        if bundle is not None and bundle.config.precision is Precision.BF16:
            return "ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16"
        return None


def _addressed(array: Array) -> Addressed:
    return Addressed(array.ctypes.data, array.shape, array.dtype)
