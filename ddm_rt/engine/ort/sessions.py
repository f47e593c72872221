"""ONNX Runtime's sessions, each on the one provider that was asked for, and what is installed of ONNX Runtime.

A provider that can't start is no error to ONNX Runtime: it logs a line and takes the CPU. So `session.get_providers()`
decides. The wheels `onnxruntime` and `onnxruntime-gpu` write the same files, so only one of them can be installed.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import onnxruntime as ort

from ddm_rt.errors import DdmError

CPU_PROVIDER, CUDA_PROVIDER, RTX_PROVIDER = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)
ON_DEVICE = (CUDA_PROVIDER, RTX_PROVIDER)  # in the order in which they are taken

CPU_WHEEL, GPU_WHEEL = "onnxruntime", "onnxruntime-gpu"
TO_GPU = f"pip uninstall -y {CPU_WHEEL} {GPU_WHEEL} && pip install '{GPU_WHEEL}[cuda,cudnn]'"
TO_CPU = f"pip uninstall -y {CPU_WHEEL} {GPU_WHEEL} && pip install {CPU_WHEEL}"


def clash() -> str | None:
    """What is wrong where both wheels are installed, with the commands that mend it; None where one is."""
    if not all(map(_is_installed, (CPU_WHEEL, GPU_WHEEL))):
        return None
    return (
        f"the packages {CPU_WHEEL} and {GPU_WHEEL} are both installed and overwrite each other's files; "
        f"`{TO_GPU}` leaves the one for GPUs, `{TO_CPU}` the one for CPUs"
    )


def device_provider() -> str | None:
    """The provider for a CUDA device that this build has; whether it starts, a session shows."""
    return next((name for name in ON_DEVICE if name in ort.get_available_providers()), None)


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
    return _on(CPU_PROVIDER, {}, path, options)


def open_on_device(path: Path, provider: str, ordinal: int, stream: int, *, graphs: bool) -> ort.InferenceSession:
    """A session on CUDA device `ordinal` that queues its work on `stream`, a CUstream. With `graphs` a run that names a
    graph is captured and replayed.

    Raises what ONNX Runtime does, and DdmError where it took another provider.
    """
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    given = {"device_id": str(ordinal), "user_compute_stream": str(stream), "enable_cuda_graph": str(int(graphs))}
    if provider == CUDA_PROVIDER:
        # Bytes must not depend on a timing (the search is exhaustive by default), nor float32 be rounded to TF32.
        given |= {"cudnn_conv_algo_search": "HEURISTIC", "use_tf32": "0", "prefer_nhwc": "1"}
    return _on(provider, given, path, options)


def _on(provider: str, given: Mapping[str, str], path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    session = ort.InferenceSession(path, options, providers=[(provider, dict(given))])
    took = session.get_providers()[0]
    if took != provider:
        raise DdmError(f"{path}: ONNX Runtime took {took}; expected {provider}, which could not start here")
    return session


def _is_installed(wheel: str) -> bool:
    try:
        return files(wheel) is not None
    except PackageNotFoundError:
        return False
