"""Which implementation of an op runs: one literal table, resolved on use, never a silent fallback."""

import importlib.util
from importlib import import_module
from typing import Any

IMPLEMENTATIONS = ("reference", "triton")

# op -> flavour -> "module:function". Triton entries join with the fused kernels.
TABLE: dict[str, dict[str, str]] = {
    "indicator_attention": {
        "reference": "ddm_rt.kernels.indicator_attention.reference:indicator_attention_reference",
    },
    "guided_step": {
        "reference": "ddm_rt.kernels.guided_step.reference:guided_step_reference",
    },
}


# (op, flavour) -> the package that it needs beyond numpy.
_NEEDS = {("indicator_attention", "reference"): "torch"}


def unavailable(op: str, flavour: str) -> str | None:
    """Why `flavour` of `op` can't run here, or None when it can.

    Raises ValueError for an unknown op or flavour, listing the choices.
    """
    if op not in TABLE:
        raise ValueError(f"op {op!r} is unknown; ops: {', '.join(TABLE)}")
    if flavour not in IMPLEMENTATIONS:
        raise ValueError(f"flavour {flavour!r} of {op} is unknown; flavours: {', '.join(IMPLEMENTATIONS)}")
    if flavour not in TABLE[op]:
        return f"no {flavour} implementation of {op} is shipped in this version"
    package = "triton" if flavour == "triton" else _NEEDS.get((op, flavour))
    if package is not None and importlib.util.find_spec(package) is None:
        return f"the package {package} is not installed"
    return None


def load(op: str, flavour: str = "auto") -> Any:
    """The function that implements `op`. `auto` takes triton where it can run, else the reference.

    Raises RuntimeError when an explicit flavour can't run here.
    """
    if flavour == "auto":
        flavour = "triton" if unavailable(op, "triton") is None else "reference"
    reason = unavailable(op, flavour)
    if reason is not None:
        raise RuntimeError(f"{flavour} {op} is not available: {reason}")
    module, function = TABLE[op][flavour].split(":")
    return getattr(import_module(module), function)
