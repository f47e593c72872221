"""ONNX Runtime on the CPU. Arrays are numpy's."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.devices import CPU_DEVICE, Device
from ddm_rt.engine.host import Array, CpuEngine
from ddm_rt.errors import DdmError

_PROVIDERS = ["CPUExecutionProvider"]
# What ONNX Runtime raises for a file that isn't a graph it can run; judges are opened with it too.
UNREADABLE = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
)


class _Graph:
    """One graph, opened."""

    def __init__(self, path: Path, threads: int) -> None:
        self._session = open_session(path, threads)
        self.inputs = [item.name for item in self._session.get_inputs()]
        self.outputs = [item.name for item in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(self.outputs, self._session.run(None, feeds), strict=True))


class OrtEngine(CpuEngine):
    """`engine.contract.Engine` on ONNX Runtime's CPU provider.

    What it takes and gives is float32 whatever the bundle's precision. Its arithmetic on x86 is float32 too: it rounds
    to fp16, int8 or fp8 where the graph says so, or later, so such a bundle shows its images here but no speed.
    """

    backend = "onnxruntime"
    library, version = "ONNX Runtime", ort.__version__
    unreadable = UNREADABLE
    refused = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException)
    graph = _Graph

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device = CPU_DEVICE) -> str | None:
        """Why this backend can't run `bundle`, or None."""
        if _PROVIDERS[0] not in ort.get_available_providers():
            return f"this build of onnxruntime has no {_PROVIDERS[0]}"
        if bundle is not None and bundle.config.precision is Precision.BF16:
            return "ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16"
        return None


def open_session(path: Path, threads: int) -> ort.InferenceSession:
    """A session on the CPU. Raises what ONNX Runtime does, and DdmError where it took another provider."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Two idle cores: threads that wait without spinning make a call of a small model 11 to 27 % slower. Two busy ones:
    # spinning, as long as it is by default, up to 67 % slower, and for a millisecond up to 39 %.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
    session = ort.InferenceSession(path, options, providers=_PROVIDERS)
    # ONNX Runtime tells of another provider in no more than a log line.
    if session.get_providers() != _PROVIDERS:
        raise DdmError(f"{path}: ONNX Runtime took {session.get_providers()}; expected {_PROVIDERS}")
    return session
