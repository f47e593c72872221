"""Which backend runs a bundle: one literal table, resolved on use, never a silent fallback."""

import logging
from importlib import import_module
from typing import Any

from ddm_rt.bundle import Bundle
from ddm_rt.config import Backend
from ddm_rt.engine import gates
from ddm_rt.engine.contract import Engine
from ddm_rt.errors import BackendUnavailable, DdmError

# Name -> "module:Class", fastest first: the order in which `auto` tries them; some only where `engine.gates` lets it.
TABLE: dict[str, str] = {
    "tensorrt": "ddm_rt.engine.tensorrt:TensorRTEngine",
    "tensorrt-rtx": "ddm_rt.engine.tensorrt:TensorRTRtxEngine",
    "openvino": "ddm_rt.engine.openvino:OpenVinoEngine",
    "onnxruntime": "ddm_rt.engine.ort:OrtEngine",
    "torch": "ddm_rt.engine.torch:TorchEngine",
}

logger = logging.getLogger(__name__)


def load(bundle: Bundle, backend: str = Backend.AUTO, threads: int | None = None) -> Engine:
    """The bundle on a backend. `auto` takes what `choose` finds and logs which.

    `threads` None means every core that this process may use.

    Raises DdmError for an unknown name or fewer than one thread, BackendUnavailable when the named backend
    (with `auto`: every one) can't run the bundle here.
    """
    if threads is not None and threads < 1:
        raise DdmError(f"threads is {threads}; expected at least 1")
    name = str(backend)
    if name == Backend.AUTO:
        name, reasons = choose(bundle)
        logger.info("backend auto: %s%s", name, "".join(f"; not {other}: {why}" for other, why in reasons.items()))
    elif name not in TABLE:
        raise DdmError(f"backend {name!r} is unknown; backends: {', '.join((Backend.AUTO, *TABLE))}")
    elif (reason := unavailable(name, bundle)) is not None:
        others = [other for other in TABLE if other != name and unavailable(other, bundle) is None]
        raise BackendUnavailable(name, reason, others)
    engine: Engine = _engine_class(name)(bundle, threads)
    return engine


def availability(bundle: Bundle | None = None) -> dict[str, str | None]:
    """Every backend with the reason why it can't run here (or can't run `bundle`), None where it can."""
    return {name: unavailable(name, bundle) for name in TABLE}


def unavailable(name: str, bundle: Bundle | None = None) -> str | None:
    """Why the backend can't run here, or None when it can."""
    try:
        engine_class = _engine_class(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "ddm_rt":
            raise
        hint = "; pip install 'ddm-rt[openvino]'" if error.name == "openvino" else ""
        return f"the package {error.name} is not installed{hint}"
    except (ImportError, OSError) as error:
        # An installed package whose shared libraries don't load on this machine.
        return f"import failed: {error}"
    reason: str | None = engine_class.unavailable(bundle)
    return reason


def choose(bundle: Bundle) -> tuple[str, dict[str, str]]:
    """What `auto` takes: the first of `TABLE` that can run the bundle here and isn't held back by a gate; and why not
    those before it.

    Raises BackendUnavailable with every reason where there is none.
    """
    reasons: dict[str, str] = {}
    for name in TABLE:
        reason = gates.why_not(bundle, name) or unavailable(name, bundle)
        if reason is None:
            return name, reasons
        reasons[name] = reason
    by_name = [name for name in gates.GATED if name in TABLE and unavailable(name, bundle) is None]
    raise BackendUnavailable(Backend.AUTO, "; ".join(f"{n}: {why}" for n, why in reasons.items()), by_name)


def _engine_class(name: str) -> Any:
    module, attribute = TABLE[name].split(":")
    return getattr(import_module(module), attribute)
