"""Plain ONNX Runtime: the same graphs, its default session with the same number of threads, a loop over them."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from subjects import Subject

from ddm_rt.errors import DdmError
from peers import Call


class PlainOrt:
    def __init__(self, subject: Subject, threads: int) -> None:
        self.versions = {"onnxruntime": ort.__version__}
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        path = Path(subject.bundle) / "denoiser.onnx"
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def step(self, feeds: dict[str, NDArray[Any]]) -> Call:
        def run() -> NDArray[np.float32]:
            out: NDArray[np.float32] = self._session.run(None, feeds)[0]
            return out

        return run

    def images(self, n: int) -> Call:
        raise DdmError("plain ONNX Runtime samples nothing by itself")
