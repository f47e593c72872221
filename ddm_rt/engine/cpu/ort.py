"""ONNX Runtime on the CPU. Arrays are numpy's."""

from collections.abc import Mapping
from pathlib import Path

import onnxruntime as ort

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.devices import CPU_DEVICE, Device
from ddm_rt.engine.host import Array, CpuEngine
from ddm_rt.engine.ort.sessions import CPU_PROVIDER, REFUSED, UNREADABLE, open_session


class _Graph:
    """One graph, opened. Not by IO binding: on the CPU that spares no copy, and takes .14 ms of a call, 3.5 % of one
    of the digits.
    """

    def __init__(self, path: Path, threads: int, bundle: Bundle) -> None:
        self._session = open_session(path, threads, frugal=bundle.config.precision is Precision.INT8_WEIGHTS)
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
