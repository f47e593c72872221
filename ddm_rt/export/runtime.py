"""ONNX Runtime for a few small calls to a graph that may be big."""

from pathlib import Path

import onnxruntime as ort


def open_session(path: Path, threads: int = 0) -> ort.InferenceSession:
    """A session that holds one copy of the weights, mapped where they lie beside the graph; 0 threads: all cores.

    ONNX Runtime would keep a second copy, arranged for its products: that pays over many calls.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
