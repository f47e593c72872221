"""Plain OpenVINO: the fp32 graph, compiled once for the shapes of the call, with the hint that asks for a precision."""

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from subjects import Subject

from ddm_rt.errors import DdmError
from peers import Call

_HINTS = {"fp32": "f32", "bf16": "bf16"}


class PlainOpenVino:
    def __init__(self, subject: Subject, threads: int, precision: str = "fp32", fixed: bool = True) -> None:
        """`fixed` False leaves the axes free, as the graph has them."""
        self.versions = {"openvino": ov.__version__}
        self._path, self._fixed = Path(subject.bundle) / "denoiser.onnx", fixed
        self._settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }

    def step(self, feeds: dict[str, NDArray[Any]]) -> Call:
        core = ov.Core()
        model = core.read_model(self._path)
        if self._fixed:
            model.reshape({name: list(value.shape) for name, value in feeds.items()})
        request = core.compile_model(model, "CPU", self._settings).create_infer_request()

        def run() -> NDArray[np.float32]:
            out: NDArray[np.float32] = request.infer(feeds)[0]
            return out

        return run

    def images(self, n: int) -> Call:
        raise DdmError("plain OpenVINO samples nothing by itself")
