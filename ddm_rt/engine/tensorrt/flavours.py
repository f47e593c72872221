"""The two flavours of TensorRT: one literal table, one code. What differs between them stands here and nowhere else."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ddm_rt.config import Backend, Precision
from ddm_rt.errors import BackendUnavailable, DdmError

PLUGIN_DOMAIN = "ddm_rt"  # of the node that indicator attention is in
PLUGIN_GRAPH = "denoiser.plugin.onnx"

# What our extras bring is for CUDA 13, and starts on no older driver. NVIDIA's prerequisites of both flavours.
DRIVER = "an NVIDIA driver of CUDA 13, which is R580, or newer"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Flavour:
    """One flavour: its Python package, how to get it, and what its builder takes."""

    name: str  # of the backend too
    module: str
    install: str
    architectures: tuple[str, ...]  # that can be named as a target; empty: the present device alone
    timing_cache: bool  # whether its builds measure tactics, and can keep what they measured
    plugins: bool  # whether the denoiser's attention is our plugin, or plain operators
    batches: tuple[tuple[int, int, int], ...]  # of the denoiser's profiles: the least size, the best, the largest
    precisions: Mapping[Precision, int]  # precision -> the least SM that computes in it
    max_opset: int  # the newest of ONNX in its documentation; the parser takes newer ones without a word

    @property
    def needs_device(self) -> bool:
        """Whether a build measures on the device that it is for."""
        return not self.architectures

    def denoiser(self, precision: Precision, plain: bool) -> str:
        """The variant of the denoiser's graph that this flavour builds: our plugin's kernel computes in half precision,
        so graphs in float32 come with plain operators; every other precision is written into half-precision graphs.
        `plain` asks for plain operators there too.
        """
        return PLUGIN_GRAPH if self.plugins and not plain and precision != Precision.FP32 else "denoiser.onnx"


# TensorRT's support matrix: bfloat16 came with Ampere, 8-bit floats with Ada.
_TENSORRT = {Precision.FP32: 75, Precision.FP16: 75, Precision.BF16: 80, Precision.INT8: 75, Precision.FP8: 89}
# Measured with TensorRT-RTX 1.7.1: the shipped bundle in every precision for each of its architectures. For sm_75 it
# refuses matrix products in float32; int8 lies in an fp16 graph.
_RTX = {Precision.FP32: 80, Precision.FP16: 75, Precision.BF16: 80, Precision.INT8: 75, Precision.FP8: 89}

# TensorRT times kernels for the best size of each profile: one image, a few, many. Each reaches to the size that its
# neighbour is tuned for. TensorRT-RTX compiles kernels for every size when it runs: it has one profile. Two more made a
# build of Stable Diffusion 1.5 take three times as long and 1.6 GiB more (measured with 1.7.1).
_TUNED = (1, 2, 8), (2, 8, 32), (8, 32, 32)
_WHOLE = ((1, 8, 32),)

TABLE: dict[str, Flavour] = {
    Backend.TENSORRT.value: Flavour(
        name=Backend.TENSORRT.value,
        module="tensorrt",
        install="pip install 'ddm-rt[tensorrt]' on a machine that reaches NVIDIA's package index",
        architectures=(),
        timing_cache=True,
        plugins=True,
        batches=_TUNED,
        precisions=_TENSORRT,
        max_opset=25,
    ),
    Backend.TENSORRT_RTX.value: Flavour(
        name=Backend.TENSORRT_RTX.value,
        module="tensorrt_rtx",
        install="pip install 'ddm-rt[tensorrt-rtx]'",
        architectures=("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121"),
        timing_cache=False,  # since 1.2 its operations do nothing
        plugins=False,
        batches=_WHOLE,
        precisions=_RTX,
        max_opset=22,
    ),
}


def flavour(name: str) -> Flavour:
    """The flavour of that name. Raises DdmError listing the choices."""
    if name not in TABLE:
        raise DdmError(f"backend {name!r} has no plans to build; those that have: {', '.join(TABLE)}")
    return TABLE[name]


def unavailable(flavour: Flavour) -> str | None:
    """Why the flavour's package can't be imported here and how to get it, or None."""
    if find_spec(flavour.module) is None:
        return f"the package {flavour.module} is not installed; {flavour.install}"
    try:
        import_module(flavour.module)
    except (ImportError, OSError, RuntimeError) as error:
        # Bindings without their libraries: the message names the library, or the package that failed.
        return f"import of {flavour.module} failed: {' '.join(str(error).split())}; {flavour.install}"
    return None


def cannot_build(flavour: Flavour) -> str | None:
    """Why plans of the flavour can't be built here (a device aside), or None."""
    if (reason := unavailable(flavour)) is not None:
        return reason
    module = import_module(flavour.module)
    # What a build calls; a runtime without a builder (the lean one) lacks them.
    if missing := [name for name in ("Builder", "OnnxParser") if not hasattr(module, name)]:
        return f"{flavour.module} {version(flavour)} is a runtime without {' and '.join(missing)}; {flavour.install}"
    # A plan without that kernel would be refused by whoever runs it, after minutes of building.
    if find_spec("triton") is None:
        return f"the package triton is not installed, which compiles guided_step for a plan; {flavour.install}"
    return None


def load(flavour: Flavour) -> Any:
    """The flavour's Python module. Raises BackendUnavailable with the reason and the way to install it."""
    if (reason := unavailable(flavour)) is not None:
        raise BackendUnavailable(flavour.name, reason, ())
    return import_module(flavour.module)


def version(flavour: Flavour) -> str:
    """The version of the flavour's package, which its plans are bound to. Raises BackendUnavailable."""
    return str(load(flavour).__version__)


def logger(trt: Any, on_error: Callable[[str], object]) -> Any:
    """A logger for a flavour's module, which hands the errors of its library on."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # no stubs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity.name in ("INTERNAL_ERROR", "ERROR"):
                on_error(message)
            _log.debug("%s: %s: %s", trt.__name__, severity, message)

    return Logger()


def construct(trt: Any, kind: Any, logger: Any) -> Any:
    """A flavour's `Builder` or `Runtime`. Raises DdmError where it doesn't start, as on a driver that is too old."""
    try:
        return kind(logger)
    except TypeError as error:  # the bindings' word for a constructor that gave nothing
        raise DdmError(f"{trt.__name__} {trt.__version__} doesn't start here: it needs {DRIVER}") from error


def architecture(name: str) -> str:
    """`89`, `sm89` and `sm_89` as `sm_89`. Raises DdmError for what is none of these."""
    digits = name.strip().lower().removeprefix("sm").removeprefix("_")
    if not digits.isascii() or not digits.isdigit():
        raise DdmError(f"architecture {name!r}: expected a compute capability such as 89 or sm_89")
    return f"sm_{int(digits)}"


def check_target(flavour: Flavour, name: str) -> None:
    """Raises DdmError where the flavour can't build for the architecture (`sm_89`); lists those it can."""
    if flavour.architectures and name not in flavour.architectures:
        raise DdmError(
            f"architecture {name} is unknown to {flavour.name}; it builds for {', '.join(flavour.architectures)}"
        )


def check_precision(flavour: Flavour, precision: str, target: str) -> None:
    """Raises DdmError where the flavour, or the architecture, doesn't compute in the graphs' precision."""
    sm = int(target.removeprefix("sm_"))
    least = flavour.precisions.get(Precision(precision))
    if least is None or sm < least:
        taken = ", ".join(name for name, minimum in flavour.precisions.items() if minimum <= sm)
        raise DdmError(
            f"precision {precision}: {flavour.name} on {target} takes {taken}; export the bundle in one of them"
        )
