"""`engine.contract.Engine` on ONNX Runtime's provider for CUDA devices.

Sessions queue on the engine's one stream, over device buffers that are the engine's own, so nothing waits between a
step's calls. Each set of input shapes has arrays at fixed addresses and a CUDA graph of its own, which ONNX Runtime
captures. guided_step and projected_guidance are compiled when an engine is first opened for an architecture, and kept
in the user's cache.
"""

import contextlib
import hashlib
import logging
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime as ort

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend, Family, Precision
from ddm_rt.engine import user_cache
from ddm_rt.engine.contract import check_names
from ddm_rt.engine.devices import CUDA_DEVICE, Device
from ddm_rt.engine.machine import installed
from ddm_rt.engine.ort import sessions
from ddm_rt.engine.ort.binding import Addressed, BoundSession, Shape
from ddm_rt.engine.ort.sessions import REFUSED, UNREADABLE
from ddm_rt.engine.tensorrt import cuda
from ddm_rt.engine.tensorrt.buffers import Arrays, Buffer
from ddm_rt.engine.tensorrt.on_device import OnDevice, step_kernels
from ddm_rt.errors import BackendUnavailable, BundleError, DdmError
from ddm_rt.files import write_atomic
from ddm_rt.kernels import guided_step
from ddm_rt.kernels.aot import write_pack
from ddm_rt.kernels.compiled import AotError
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES
from ddm_rt.kernels.pack import MANIFEST, STEP_OPS, PackError, read_pack

_MOST_CALLS = 32  # sets of shapes kept ready, each with a graph
# Four images of 512x512 in a call of the VAE: each session keeps the memory that its largest call took.
_VAE_PIXELS = 2**20
_SIGNATURE = "manifest.hmac"  # of a pack in the user's cache: that it was made here
_PRECISIONS = (Precision.FP32, Precision.FP16)

_log = logging.getLogger(__name__)


class OrtCudaEngine(OnDevice):
    """The same graphs as on the CPU, in the bundle's precision: fp32, or fp16 on tensor cores."""

    backend: ClassVar[str] = Backend.ONNXRUNTIME.value
    max_batch = None
    max_pixels = _VAE_PIXELS

    def _open(self, resources: ExitStack, device: Device) -> None:
        """Raises BackendUnavailable where the provider doesn't start, BundleError for a graph that isn't one or doesn't
        take what the bundle says.
        """
        info, config = self._device.info, self._bundle.config
        provider = sessions.device_provider()
        assert provider is not None
        self.precision = config.precision.value
        self.versions = {
            self.backend: ort.__version__,
            "provider": provider,
            "cuda": info.driver_version,
            "gpu": info.name,
            "triton": installed("triton") or "none",
        }
        self._kernels = step_kernels(self._device, kernels_for(info.architecture), resources)
        # ONNX Runtime keeps graphs and handles for each thread that calls it, so one thread makes all calls.
        worker = ThreadPoolExecutor(1, "onnxruntime")
        resources.callback(worker.shutdown)
        networks: dict[str, _Network] = {}
        for name, path in self._bundle.graphs.items():
            # A VAE of SDXL may have stayed float32 (`force_upcast`), and mustn't be rounded to TF32.
            half = config.precision is Precision.FP16 and (config.family, name) != (Family.SDXL, "decoder")
            opens = partial(sessions.open_on_device, path, provider, device.ordinal, self._stream.handle, half=half)
            # Text encoder and conditioner run once per prompt: a graph of them would be captured and never replayed.
            graphs = name in ("denoiser", "decoder")
            networks[name] = network = _Network(
                f"{name}.onnx", opens, device.ordinal, self._arrays, worker, graphs=graphs
            )
            resources.callback(network.close)
            network.open(path, self.backend)
            check_names(config, name, path, network.inputs, network.outputs)
        self._networks = networks
        resources.callback(self._stream.synchronize)
        resources.callback(self._device.activate)

    @classmethod
    def unavailable(cls, bundle: Bundle | None, device: Device = CUDA_DEVICE) -> str | None:
        """Why this backend can't run `bundle` on the device, or None."""
        if (reason := sessions.clash()) is not None:
            return reason
        if (provider := sessions.device_provider()) is None:
            return f"this build of onnxruntime is for CPUs; `{sessions.TO_GPU}` brings the one for GPUs in its place"
        try:
            info = cuda.device_info(ordinal=device.ordinal)
        except DdmError as error:
            return str(error)
        if info.architecture not in ARCHITECTURES:
            return f"guided_step is not shipped for {info.architecture}; it is for {', '.join(ARCHITECTURES)}"
        if find_spec("triton") is None:
            return "guided_step is compiled by triton, which is not installed; pip install triton"
        if bundle is not None and bundle.config.precision not in _PRECISIONS:
            taken = " and ".join(_PRECISIONS)
            return f"the bundle is {bundle.config.precision}; ONNX Runtime computes {taken} on a CUDA device"
        if bundle is not None and bundle.index.provenance.get("decoder_tile"):
            return "the bundle's decoder works in tiles, and a CUDA graph holds no loop"
        return sessions.cannot_start(provider, device.ordinal)


class _Network:
    """A session on device arrays, with fixed arrays for each set of input shapes. `opens(graphs=...)` opens it."""

    def __init__(
        self,
        name: str,
        opens: Callable[..., ort.InferenceSession],
        ordinal: int,
        arrays: Arrays,
        worker: ThreadPoolExecutor,
        *,
        graphs: bool,
    ) -> None:
        self.name, self._opens, self._ordinal, self._arrays = name, opens, ordinal, arrays
        self._worker, self._graphs = worker, graphs
        self._session: BoundSession | None = None
        self._calls: OrderedDict[tuple[Shape, ...], _Call] = OrderedDict()
        self._captured = 0
        self.inputs: dict[str, np.dtype[Any]] = {}
        self.outputs: dict[str, np.dtype[Any]] = {}

    def open(self, path: Path, backend: str) -> None:
        """Raises BackendUnavailable where the provider doesn't start, BundleError for a file that is no graph."""
        try:
            try:
                self._open()
            except UNREADABLE as error:
                if not self._graphs or "graph capture" not in str(error):
                    raise
                self._launch(error)  # some node isn't one of the device's, and a graph can't hold it
        except UNREADABLE as error:
            raise BundleError(f"{path}: not a graph that ONNX Runtime {ort.__version__} runs: {error}") from error
        except DdmError as error:
            raise BackendUnavailable(backend, str(error), ()) from error

    def _open(self) -> None:
        session = self._worker.submit(self._opens, graphs=self._graphs).result()
        self._session = BoundSession(session, self._ordinal)
        self.inputs, self.outputs = self._session.inputs, self._session.outputs

    def _launch(self, why: Exception) -> None:
        """Without graphs from now on, in a new session: one whose capture failed may be in any state."""
        _log.warning("%s: no CUDA graph, its calls are launched one by one: %s", self.name, why)
        self._graphs = False
        for call in self._calls.values():
            call.graph = None
        self._open()

    def __call__(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]:
        """Outputs of one run, arrays of their own. Queued; doesn't wait, but for the first call with these shapes.

        Raises DdmError naming the inputs' shapes where the graph doesn't take them or the device has too little memory.
        """
        shapes = tuple(feeds[name].shape for name in self.inputs)
        try:
            call = self._calls.get(shapes) or self._prepare(feeds, shapes)
            self._calls.move_to_end(shapes)
            call.fill(self._arrays, feeds)
            try:
                self._run(call)
            except REFUSED as error:
                if call.graph is None or call.ran:
                    raise
                self._launch(error)
                self._run(call)
        except REFUSED as error:
            given = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            what = "has too little memory for" if "llocate" in str(error) else "refused"
            raise DdmError(f"{self.name} {what} its inputs ({given}): {error}") from error
        results = {name: self._arrays.empty(fixed.shape, fixed.dtype) for name, fixed in call.outputs.items()}
        for name, result in results.items():
            self._arrays.copy(result.pointer, call.outputs[name])
        return results

    def _run(self, call: "_Call") -> None:
        assert self._session is not None
        given, made = _addressed(call.inputs), _addressed(call.outputs)
        self._worker.submit(self._session.run, given, made, call.graph).result()
        call.ran = True

    def _prepare(self, feeds: Mapping[str, Buffer], shapes: tuple[Shape, ...]) -> "_Call":
        assert self._session is not None
        given = _addressed({name: feeds[name] for name in self.inputs})
        first = self._worker.submit(self._session.first, given).result()
        empty, dtypes = self._arrays.empty, self.outputs
        outputs = {name: empty(tuple(value.shape()), dtypes[name]) for name, value in first.items()}
        inputs = {name: empty(feeds[name].shape, dtype) for name, dtype in self.inputs.items()}
        # ONNX Runtime keeps every graph that it captured: beyond so many shapes, calls are launched one by one.
        graph = None
        if self._graphs and self._captured < _MOST_CALLS:
            self._captured += 1
            graph = self._captured
        elif self._graphs:
            _log.warning("%s: has a CUDA graph for %d sets of shapes; others are launched", self.name, _MOST_CALLS)
        while len([call for call in self._calls.values() if call.graph is None]) >= _MOST_CALLS:
            self._calls.pop(next(key for key, call in self._calls.items() if call.graph is None))
        self._calls[shapes] = _Call(inputs, outputs, graph)
        return self._calls[shapes]

    def close(self) -> None:
        """Drop arrays and session, before the stream that it queues on."""
        self._calls.clear()
        self._session = None


class _Call:
    """Arrays at fixed addresses, and the number of the graph that was captured over them."""

    def __init__(self, inputs: dict[str, Buffer], outputs: dict[str, Buffer], graph: int | None) -> None:
        self.inputs, self.outputs, self.graph = inputs, outputs, graph
        self.ran = False
        self._filled: dict[str, weakref.ref[Buffer]] = {}

    def fill(self, arrays: Arrays, feeds: Mapping[str, Buffer]) -> None:
        """Copy inputs into place; what is there from the last call (`cond`, in a loop) isn't copied again."""
        for name, fixed in self.inputs.items():
            last = self._filled.get(name)
            if last is None or last() is not feeds[name]:
                arrays.copy(fixed.pointer, feeds[name])
                self._filled[name] = weakref.ref(feeds[name])


def kernels_for(architecture: str) -> Path:
    """The folder with a step's kernels for `architecture`, compiled if the user's cache has none that was made here by
    this triton. Raises DdmError where it can't be compiled.
    """
    folder = user_cache.root() / "kernels" / f"guided_step-{architecture}-{_source()}-triton-{installed('triton')}"
    if _made_here(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        made = Path(scratch) / "pack"
        try:
            write_pack(made, [architecture], STEP_OPS)
        except (AotError, ValueError) as error:
            raise DdmError(f"guided_step can't be compiled for {architecture}: {error}") from error
        write_atomic(made / _SIGNATURE, user_cache.sign((made / MANIFEST).read_bytes()))
        if folder.is_dir() and not _made_here(folder):
            with contextlib.suppress(OSError):  # another process moved it first
                folder.rename(Path(scratch) / "foreign")
        try:
            made.rename(folder)
        except OSError:
            if not _made_here(folder):  # else another process was first
                raise
    return folder


def _made_here(folder: Path) -> bool:
    """Whether a whole pack lies there that this user made."""
    try:
        read_pack(folder)
        return user_cache.signed_here((folder / MANIFEST).read_bytes(), (folder / _SIGNATURE).read_bytes())
    except (OSError, PackError):
        return False


@cache
def _source() -> str:
    """Of what a step's kernels are compiled from: another version of ours takes kernels of its own."""
    kernels = Path(guided_step.__file__).parents[1]
    files = [*(kernels / op / name for op in STEP_OPS for name in ("fused.py", "table.py")), kernels / "philox.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _addressed(arrays: Mapping[str, Buffer]) -> dict[str, Addressed]:
    return {name: Addressed(array.pointer, array.shape, array.dtype) for name, array in arrays.items()}
