"""ONNX Runtime's sessions, each on the one provider that was asked for, and what is installed of ONNX Runtime.

A provider that can't start is no error to ONNX Runtime: it logs a line and takes the CPU. So `session.get_providers()`
decides. The wheels `onnxruntime` and `onnxruntime-gpu` write the same files, so only one of them can be installed.
"""

import io
from collections.abc import Mapping
from contextlib import redirect_stdout
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from ddm_rt.errors import DdmError

CPU_PROVIDER, CUDA_PROVIDER, RTX_PROVIDER = (
    "CPUExecutionProvider",
    "CUDAExecutionProvider",
    "NvTensorRTRTXExecutionProvider",
)
ON_DEVICE = (CUDA_PROVIDER, RTX_PROVIDER)  # in the order in which they are taken

# What ONNX Runtime raises for a file that isn't a graph it can run; judges are opened with it too.
UNREADABLE = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)
# And for inputs that it doesn't take; by IO binding the first.
REFUSED = (RuntimeError, ort_errors.RuntimeException, ort_errors.EPFail, ort_errors.Fail, ort_errors.InvalidArgument)

# A graph of one Identity, as ONNX stores it.
_IDENTITY = bytes.fromhex(
    "08083a370a100a017812017922084964656e746974791201675a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02"
    "080142040a001012"
)

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


@cache
def cannot_start(provider: str, ordinal: int) -> str | None:
    """Why the provider doesn't start on that device, or None: that it is listed says that it was built, no more."""
    if not hasattr(ort.InferenceSession, "get_input_memory_infos"):
        return (
            f"onnxruntime-gpu {ort.__version__} is too old for CUDA graphs that don't wait; `{TO_GPU}` brings another"
        )
    _load_cuda()
    try:
        took = ort.InferenceSession(_IDENTITY, providers=[(provider, {"device_id": str(ordinal)})], enable_fallback=0)
    except (*UNREADABLE, RuntimeError, ValueError) as error:
        return f"{provider} doesn't start: {error}"
    if took.get_providers()[0] != provider:
        return (
            f"{provider} doesn't start: a library of CUDA or cuDNN is missing, or the driver is too old (ONNX "
            f"Runtime's log says which); `{TO_GPU}` brings the libraries, and a driver of CUDA 13 is R580 or newer"
        )
    return None


def open_session(path: Path, threads: int, *, frugal: bool = False) -> ort.InferenceSession:
    """A session on the CPU; a `frugal` one gives memory back as soon as it can. Raises what ONNX Runtime does, and
    DdmError where it took another provider.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # The arena keeps all that a call needed at once: .4 GiB at Stable Diffusion's size, which saves 5 % of its time.
    options.enable_cpu_mem_arena = not frugal
    # Two idle cores: threads that wait without spinning make a call of a small model 11 to 27 % slower. Two busy ones:
    # spinning, as long as it is by default, up to 67 % slower, and for a millisecond up to 39 %.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
    return _on(CPU_PROVIDER, {}, path, options)


def open_on_device(
    path: Path, provider: str, ordinal: int, stream: int, *, graphs: bool, half: bool
) -> ort.InferenceSession:
    """A session on CUDA device `ordinal` that queues its work on `stream`, a CUstream. With `graphs` a run that names a
    graph is captured and replayed. `half`: the graph computes in fp16.

    Raises what ONNX Runtime does, and DdmError where it took another provider or keeps an input elsewhere.
    """
    options = ort.SessionOptions()
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.enable_mem_pattern = False  # a second block of memory beside the arena's
    given = {"device_id": str(ordinal), "user_compute_stream": str(stream), "enable_cuda_graph": str(int(graphs))}
    if provider == CUDA_PROVIDER:
        # By default convolutions are chosen by a search, and float32 is rounded to TF32. Without `use_tf32` ONNX
        # Runtime takes no tensor cores at all, so it stays where numbers are half anyway.
        given |= {
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": str(int(half)),
            "prefer_nhwc": str(int(half)),
            "arena_extend_strategy": "kSameAsRequested",
        }
    _load_cuda()
    session = _on(provider, given, path, options)
    for name, memory in zip((i.name for i in session.get_inputs()), session.get_input_memory_infos(), strict=True):
        # One that is used on the host would be copied there when it is bound, and not again.
        if memory.name.lower() not in ("cuda", "nvtensorrtrtx") and provider == CUDA_PROVIDER:
            raise DdmError(f"{path}: ONNX Runtime keeps input {name} in {memory.name}; expected the device's memory")
    return session


@cache
def _load_cuda() -> None:
    """CUDA's and cuDNN's libraries from the packages that pip brought, where they are: the loader doesn't look there.

    Of what it prints, nothing is lost: a session that can't start is an error.
    """
    if hasattr(ort, "preload_dlls"):
        with redirect_stdout(io.StringIO()):
            ort.preload_dlls()


def _on(provider: str, given: Mapping[str, str], path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    # By default a failure is printed, and another provider is taken.
    session = ort.InferenceSession(path, options, providers=[(provider, dict(given))], enable_fallback=0)
    took = session.get_providers()[0]
    if took != provider:
        raise DdmError(
            f"{path}: ONNX Runtime took {took}; expected {provider}, which could not start here (its log says why)"
        )
    return session


def _is_installed(wheel: str) -> bool:
    try:
        return files(wheel) is not None
    except PackageNotFoundError:
        return False
