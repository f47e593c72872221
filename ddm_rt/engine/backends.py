"""Which backend runs a bundle: one literal table, resolved on use, never a silent fallback."""

import logging
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend, Precision
from ddm_rt.engine import devices, gates
from ddm_rt.engine.contract import Engine
from ddm_rt.engine.devices import CPU, CUDA, Device
from ddm_rt.errors import BackendUnavailable, DdmError


@dataclass(frozen=True)
class Row:
    """A backend on a kind of device."""

    backend: str
    device: str  # "cuda" or "cpu"
    engine: str  # "module:Class", with Class(bundle, threads, device) and Class.unavailable(bundle, device)
    rounds_to: tuple[Precision, ...] = ()  # what it computes an fp32 bundle in where asked; Class(..., precision) then

    @property
    def name(self) -> str:
        """What tells it from the other rows in a message."""
        several = sum(row.backend == self.backend for row in TABLE) > 1
        return f"{self.backend} on {self.device}" if several else self.backend


_HALF = (Precision.BF16, Precision.FP16)

# Fastest first: the order in which `auto` tries them; some only where `engine.gates` lets it.
TABLE: tuple[Row, ...] = (
    Row("tensorrt", CUDA, "ddm_rt.engine.tensorrt.engine:TensorRTEngine"),
    Row("tensorrt-rtx", CUDA, "ddm_rt.engine.tensorrt.engine:TensorRTRtxEngine"),
    Row("torch", CUDA, "ddm_rt.engine.torch.engine:TorchEngine", _HALF),
    Row("onnxruntime", CUDA, "ddm_rt.engine.ort.engine:OrtCudaEngine"),
    Row("openvino", CPU, "ddm_rt.engine.cpu.openvino:OpenVinoEngine"),
    Row("onnxruntime", CPU, "ddm_rt.engine.cpu.ort:OrtEngine"),
    Row("torch", CPU, "ddm_rt.engine.torch.engine:TorchEngine", _HALF),
)

# What an installation lacks -> the extra that brings it.
_EXTRAS = {"openvino": "openvino", "torch": "train,gpu", "diffusers": "train,gpu"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """What `auto` takes, and why none of the rows before it."""

    row: Row
    precision: Precision  # that it computes in
    reasons: dict[str, str]  # `Row.name`, or "torch in bf16" -> why not
    note: str | None = None  # what its gate doesn't say

    def __str__(self) -> str:
        chosen = f"{self.row.name} in {self.precision}"
        return "; ".join(
            [chosen, *([self.note] if self.note else []), *(f"not {name}: {why}" for name, why in self.reasons.items())]
        )


def load(
    bundle: Bundle,
    backend: str = Backend.AUTO,
    threads: int | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> Engine:
    """The bundle on a backend. `auto` takes what `choose` finds.

    `threads` None means every core that this process may use. `device` is "cpu", "cuda" or "cuda:1"; None takes the
    first CUDA device where the backend can use one. `precision` is what to compute in; None is the bundle's own, but
    where `auto` knows of a gate that half precision passed.

    A GPU that stays unused though nobody asked for that is one warning, with the reason; so is one that computes in
    float32 because nobody recorded a gate.

    Raises DdmError for an unknown name, device or precision or fewer than one thread, BackendUnavailable when the named
    backend (with `auto`: every one) can't run the bundle here.
    """
    if threads is not None and threads < 1:
        raise DdmError(f"threads is {threads}; expected at least 1")
    if precision is not None and precision not in set(Precision):
        raise DdmError(f"precision {precision!r} is unknown; expected one of: {', '.join(Precision)}")
    wanted = None if device is None else Device.parse(device)
    computed = None if precision is None else Precision(precision)
    if backend == Backend.AUTO:
        choice = choose(bundle, wanted, computed)
        logger.debug("backend auto: %s", choice)
        if choice.note is not None:
            logger.warning("%s", choice.note)
        if wanted is None:
            _warn_of_an_unused_gpu(choice)
        if computed is None:
            _warn_of_float32(bundle, choice)
        row, computed = choice.row, choice.precision
    else:
        row = _named(str(backend), bundle, wanted, computed)
    given = (bundle, threads, wanted or Device(row.device), *([computed] if row.rounds_to else []))
    engine: Engine = _engine_class(row)(*given)
    return engine


def rounds_to(backend: str) -> tuple[Precision, ...]:
    """What the backend computes an fp32 bundle in where asked; nothing where it keeps to the bundle's own precision."""
    return next((row.rounds_to for row in TABLE if row.backend == backend), ())


def names() -> tuple[str, ...]:
    """The backends, fastest first."""
    return tuple(dict.fromkeys(row.backend for row in TABLE))


def availability(bundle: Bundle | None = None) -> dict[str, str | None]:
    """Every row of `TABLE` by its name, with the reason why it can't run here (or can't run `bundle`), None where it
    can.
    """
    return {row.name: _why_not(row, bundle) for row in TABLE}


def unavailable(
    backend: str, bundle: Bundle | None = None, device: Device | None = None, precision: Precision | None = None
) -> str | None:
    """Why the backend can't run here on the device (None: on any), or None when it can."""
    reasons = [_why_not(row, bundle, device, precision) for row in _rows(device) if row.backend == backend]
    return None if None in reasons else reasons[-1]


def choose(bundle: Bundle, device: Device | None = None, precision: Precision | None = None) -> Choice:
    """What `auto` takes: the first row of `TABLE`, of those of `device`'s kind, that can run the bundle here and isn't
    held back by a gate. Where no `precision` is asked for, a GPU computes an fp32 bundle in half precision if a gate is
    recorded that it passed, else in float32.

    Raises BackendUnavailable with every reason where there is none.
    """
    own = bundle.config.precision
    reasons: dict[str, str] = {}
    for row in _rows(device):
        reason = gates.why_not(bundle, row.backend) or _why_not(row, bundle, device, precision)
        if reason is not None:
            reasons[row.name] = reason
            continue
        rounded = row.rounds_to if precision is None and own is Precision.FP32 and row.device == CUDA else ()
        for half in rounded:
            held = gates.why_not(bundle, row.backend, half, device or Device(CUDA)) or _why_not(
                row, bundle, device, half
            )
            if held is None:
                return Choice(row, half, reasons, gates.note(bundle, row.backend, half))
            reasons[f"{row.backend} in {half}"] = held
        note = gates.note(bundle, row.backend) if row.backend in gates.GATED else None
        return Choice(row, precision or own, reasons, note)
    passed_over = [row for row in _rows(device) if row.backend in gates.GATED]
    by_name = [row.backend for row in passed_over if _why_not(row, bundle, device, precision) is None]
    raise BackendUnavailable(str(Backend.AUTO), "; ".join(f"{n}: {why}" for n, why in reasons.items()), by_name)


def _rows(device: Device | None) -> list[Row]:
    return [row for row in TABLE if device is None or row.device == device.kind]


def _named(backend: str, bundle: Bundle, device: Device | None, precision: Precision | None) -> Row:
    if backend not in names():
        raise DdmError(f"backend {backend!r} is unknown; backends: {', '.join((Backend.AUTO, *names()))}")
    reasons: list[str] = []
    for row in _rows(device):
        if row.backend != backend:
            continue
        reason = _why_not(row, bundle, device, precision)
        if reason is None:
            return row
        reasons.append(reason)
    others = [name for name in names() if name != backend and unavailable(name, bundle) is None]
    raise BackendUnavailable(backend, reasons[-1] if reasons else f"it doesn't run on {device}", others)


def _why_not(
    row: Row, bundle: Bundle | None, device: Device | None = None, precision: Precision | None = None
) -> str | None:
    """Why the row can't run (`bundle`, in that precision) here, or None."""
    if bundle is not None and precision not in (None, own := bundle.config.precision):
        if own is not Precision.FP32:
            return f"the bundle is {own}; rounding it to {precision} would be rounding twice"
        if precision not in row.rounds_to:
            how = f"`ddm-rt export {bundle.path} --precision {precision} --out DIR` makes a bundle of {precision}"
            return f"it computes in the bundle's own precision, {own}; {how}"
    if row.device == CUDA and (unseen := devices.invisible()) is not None:
        return unseen  # before packages that take seconds to import
    try:
        engine_class = _engine_class(row)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "ddm_rt":
            raise
        hint = f"; pip install 'ddm-rt[{_EXTRAS[error.name]}]'" if error.name in _EXTRAS else ""
        return f"the package {error.name} is not installed{hint}"
    except (ImportError, OSError) as error:
        # An installed package whose shared libraries don't load on this machine.
        return f"import failed: {error}"
    given = (bundle, device or Device(row.device), *([precision] if row.rounds_to else []))
    reason: str | None = engine_class.unavailable(*given)
    return reason


def _warn_of_an_unused_gpu(choice: Choice) -> None:
    if choice.row.device == CUDA or devices.invisible() is not None:
        return
    # Of the rows that take a GPU, torch's asks for least.
    why = next((choice.reasons.get(row.name) for row in TABLE if (row.backend, row.device) == ("torch", CUDA)), None)
    if why is not None:
        logger.warning("the GPU (%s) is not used: %s; --device cpu silences this", devices.visible_name(), why)


def _warn_of_float32(bundle: Bundle, choice: Choice) -> None:
    rounded = [
        reason for half in choice.row.rounds_to if (reason := choice.reasons.get(f"{choice.row.backend} in {half}"))
    ]
    if rounded and choice.precision is Precision.FP32:
        logger.warning(
            "the GPU computes in float32: %s in %s: %s; --precision fp32 silences this",
            *(choice.row.backend, choice.row.rounds_to[0], rounded[0]),
        )


def _engine_class(row: Row) -> Any:
    module, attribute = row.engine.split(":")
    return getattr(import_module(module), attribute)
