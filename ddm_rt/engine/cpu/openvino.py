"""OpenVINO on the CPU: what computes bf16 and int8 bundles in bf16 and int8. Arrays are numpy's."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.contract import (
    CPU_PIXELS,
    check_finite,
    check_names,
    conditioner_feeds,
    conditioner_inputs,
    refusal,
    text_outputs,
    usable_cores,
)
from ddm_rt.engine.devices import CPU_DEVICE, Device
from ddm_rt.engine.host import Array, HostArrays
from ddm_rt.errors import BundleError, DdmError

_DEVICE = "CPU"
# A graph that is compiled for the shapes of its call is up to twice as fast as one with free axes, and holds a copy of
# its weights for each: so many are kept, and of large models as many as fit into these bytes, the last one always.
_SHAPES, _WEIGHT_BYTES = 16, 2**31

_Shapes = tuple[tuple[int, ...], ...]


class OpenVinoEngine(HostArrays):
    """`engine.contract.Engine` on OpenVINO's CPU plugin.

    It computes in what the bundle's graphs say: bf16 and int8 as such on a CPU that has instructions for them, fp16 and
    fp8 as float32 with weights that were rounded. What it takes and gives is float32. Compiled graphs are kept in
    memory alone, nothing is written.
    """

    backend = "openvino"
    max_batch = None
    max_pixels = CPU_PIXELS

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device = CPU_DEVICE) -> None:
        """Raises BundleError for a graph that isn't one, or that doesn't take what the bundle says."""
        self.precision = bundle.config.precision.value
        self.threads = threads or usable_cores()
        self.versions = {"openvino": ov.__version__, "numpy": np.__version__}
        self._bundle = bundle
        cond = [spec.name for spec in bundle.config.cond]
        self._conditioner = _Graph(bundle.graphs["conditioner"], self.threads, fixed=False)
        self._conditioner.check(conditioner_inputs(bundle.config), cond, "added")
        self._denoiser = _Graph(bundle.graphs["denoiser"], self.threads)
        self._denoiser.check(["x_t", "t", *cond])
        self._decoder = _Graph(bundle.graphs["decoder"], self.threads)
        self._decoder.check(["x0"])

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device = CPU_DEVICE) -> str | None:
        """Why this backend can't run `bundle`, or None."""
        capabilities = _core().get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
        if bundle is not None and bundle.config.precision is Precision.BF16 and "BF16" not in capabilities:
            return "this CPU has no bf16 instructions, and this bundle is bf16"
        return None

    @cached_property
    def _text_encoder(self) -> "_Graph":
        """Opened when the first prompt comes: it is needed for no more than that."""
        if self._bundle.config.prompt_free:
            raise DdmError(f"{self._bundle.path}: is prompt-free, so it has no text encoder")
        graph = _Graph(self._bundle.graphs["text_encoder"], self.threads, fixed=False)
        config = self._bundle.config
        graph.check([spec.input for spec in config.text], text_outputs(config), "text")
        return graph

    def text_encoder(self, input_ids: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        return self._text_encoder(input_ids)

    def conditioner(
        self,
        context: NDArray[np.float32],
        code: NDArray[np.int64],
        indicator_scale: NDArray[np.float32],
        added: Mapping[str, NDArray[Any]],
    ) -> dict[str, Array]:
        return self._conditioner(conditioner_feeds(self._bundle.config, context, code, indicator_scale, added))

    def denoiser(self, x_t: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        return self._denoiser({"x_t": x_t, "t": t, **cond})["output"]

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        image: NDArray[np.float32] = self._decoder({"x0": x0})["image"]
        check_finite(image, self._bundle)
        return image


class _Graph:
    """One graph: compiled when it is called, for the shapes of the call where `fixed`, else once for all."""

    def __init__(self, path: Path, threads: int, *, fixed: bool = True) -> None:
        self.path, self._threads, self._fixed = path, threads, fixed
        try:
            self._model = _core().read_model(path)
        except RuntimeError as error:
            raise BundleError(f"{path}: not a graph that OpenVINO {ov.__version__} runs: {error}") from error
        self.inputs = [_name(port) for port in self._model.inputs]
        self.outputs = [_name(port) for port in self._model.outputs]
        size = sum(file.stat().st_size for file in (path, path.with_name(f"{path.name}.data")) if file.exists())
        self._most = max(1, min(_SHAPES, _WEIGHT_BYTES // size))
        self._compiled: OrderedDict[_Shapes, ov.InferRequest] = OrderedDict()
        self._lock = threading.Lock()  # a request computes one call at a time

    def check(self, inputs: list[str], outputs: list[str] | None = None, field: str = "cond") -> None:
        """Raises BundleError where names aren't those of the bundle."""
        check_names(self.path, "inputs", self.inputs, inputs, field)
        if outputs is not None:
            check_names(self.path, "outputs", self.outputs, outputs)

    def __call__(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        with self._lock:
            try:
                request = self._request(tuple(arrays[name].shape for name in self.inputs) if self._fixed else ())
                found = request.infer(arrays, share_inputs=True)
            except RuntimeError as error:
                raise refusal(self.path.stem, arrays, error) from error
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
        self._compiled[shapes] = _core().compile_model(model, _DEVICE, self._settings()).create_infer_request()
        return self._compiled[shapes]

    def _settings(self) -> dict[str, Any]:
        return {
            # Of what the graph leaves float32; by default the plugin computes that in bf16 too.
            "INFERENCE_PRECISION_HINT": "f32",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
            # Pinned threads of two processes, or of a server and its batch job, would share cores while others idle.
            "ENABLE_CPU_PINNING": False,
        }


@cache
def _core() -> ov.Core:
    """One for the process: it holds no bundle's state."""
    return ov.Core()


def _name(port: Any) -> str:
    return str(port.get_any_name())
