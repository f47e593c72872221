"""ONNX Runtime on the CPU. Arrays are numpy's."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

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

_PROVIDERS = ["CPUExecutionProvider"]
# What ONNX Runtime raises for a file that isn't a graph it can run; judges are opened with it too.
UNREADABLE = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
)
_REFUSED = (ort_errors.Fail, ort_errors.InvalidArgument, ort_errors.RuntimeException)
_REFUSED_PRECISIONS = {Precision.BF16: "ONNX Runtime has no bf16 operators on the CPU, and this bundle is bf16"}


class OrtEngine(HostArrays):
    """`engine.contract.Engine` on ONNX Runtime's CPU provider.

    What it takes and gives is float32 whatever the bundle's precision. Its arithmetic on x86 is float32 too: it rounds
    to fp16, int8 or fp8 where the graph says so, or later, so such a bundle shows its images here but no speed.
    """

    backend = "onnxruntime"
    max_batch = None
    max_pixels = CPU_PIXELS

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device = CPU_DEVICE) -> None:
        """Raises BundleError for a graph that isn't one, or that doesn't take what the bundle says."""
        self.precision = bundle.config.precision.value
        self.threads = threads or usable_cores()
        self.versions = {"onnxruntime": ort.__version__, "numpy": np.__version__}
        self._bundle = bundle
        self._conditioner = _session(bundle.graphs["conditioner"], self.threads)
        self._denoiser = _session(bundle.graphs["denoiser"], self.threads)
        self._decoder = _session(bundle.graphs["decoder"], self.threads)
        cond = [spec.name for spec in bundle.config.cond]
        given = conditioner_inputs(bundle.config)
        check_names(bundle.graphs["conditioner"], "inputs", _names(self._conditioner.get_inputs()), given, "added")
        check_names(bundle.graphs["conditioner"], "outputs", _names(self._conditioner.get_outputs()), cond)
        check_names(bundle.graphs["denoiser"], "inputs", _names(self._denoiser.get_inputs()), ["x_t", "t", *cond])
        check_names(bundle.graphs["decoder"], "inputs", _names(self._decoder.get_inputs()), ["x0"])

    @staticmethod
    def unavailable(bundle: Bundle | None, device: Device = CPU_DEVICE) -> str | None:
        """Why this backend can't run `bundle`, or None."""
        if _PROVIDERS[0] not in ort.get_available_providers():
            return f"this build of onnxruntime has no {_PROVIDERS[0]}"
        if bundle is not None and bundle.config.precision in _REFUSED_PRECISIONS:
            return _REFUSED_PRECISIONS[bundle.config.precision]
        return None

    @cached_property
    def _text_encoder(self) -> ort.InferenceSession:
        """Opened when the first prompt comes: it is needed for no more than that."""
        if self._bundle.config.prompt_free:
            raise DdmError(f"{self._bundle.path}: is prompt-free, so it has no text encoder")
        path, config = self._bundle.graphs["text_encoder"], self._bundle.config
        session = _session(path, self.threads)
        check_names(path, "inputs", _names(session.get_inputs()), [spec.input for spec in config.text], "text")
        check_names(path, "outputs", _names(session.get_outputs()), text_outputs(config), "added")
        return session

    def text_encoder(self, input_ids: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        names = _names(self._text_encoder.get_outputs())
        return dict(zip(names, _run(self._text_encoder, "text_encoder", input_ids), strict=True))

    def conditioner(
        self,
        context: NDArray[np.float32],
        code: NDArray[np.int64],
        indicator_scale: NDArray[np.float32],
        added: Mapping[str, NDArray[Any]],
    ) -> dict[str, Array]:
        feeds = conditioner_feeds(self._bundle.config, context, code, indicator_scale, added)
        names = _names(self._conditioner.get_outputs())
        return dict(zip(names, _run(self._conditioner, "conditioner", feeds), strict=True))

    def denoiser(self, x_t: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        return _run(self._denoiser, "denoiser", {"x_t": x_t, "t": t, **cond})[0]

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        image: NDArray[np.float32] = _run(self._decoder, "decoder", {"x0": x0})[0]
        check_finite(image, self._bundle)
        return image


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    # Two idle cores: threads that wait without spinning make a call of a small model 11 to 27 % slower. Two busy ones:
    # spinning, as long as it is by default, up to 67 % slower, and for a millisecond up to 39 %.
    options.add_session_config_entry("session.intra_op.spin_duration_us", "1000")
    try:
        session = ort.InferenceSession(path, options, providers=_PROVIDERS)
    except UNREADABLE as error:
        raise BundleError(f"{path}: not a graph that ONNX Runtime {ort.__version__} runs: {error}") from error
    # ONNX Runtime tells of another provider in no more than a log line.
    if session.get_providers() != _PROVIDERS:
        raise DdmError(f"{path}: ONNX Runtime took {session.get_providers()}; expected {_PROVIDERS}")
    return session


def _run(session: ort.InferenceSession, name: str, feeds: Mapping[str, Array]) -> list[Array]:
    try:
        outputs: list[Array] = session.run(None, feeds)
    except _REFUSED as error:
        raise refusal(name, feeds, error) from error
    return outputs


def _names(items: Sequence[Any]) -> list[str]:
    return [item.name for item in items]
