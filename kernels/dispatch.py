"""Which implementation of an op runs: one literal table, resolved on use, never a silent fallback.

Imports neither torch nor triton before it is asked for something that needs them.
"""

import importlib.util
import logging
import os
from functools import cache
from importlib import import_module
from typing import Any

log = logging.getLogger(__name__)

IMPLEMENTATIONS = ("reference", "triton")

# op -> flavour -> "module:function"
TABLE: dict[str, dict[str, str]] = {
    "indicator_attention": {
        "reference": "ddm_rt.kernels.indicator_attention.reference:indicator_attention_reference",
        "triton": "ddm_rt.kernels.indicator_attention.fused:indicator_attention_fused",
    },
    "guided_step": {
        "reference": "ddm_rt.kernels.guided_step.reference:guided_step_reference",
        "triton": "ddm_rt.kernels.guided_step.fused:guided_step_fused",
    },
    "projected_guidance": {
        "reference": "ddm_rt.kernels.projected_guidance.reference:projected_guidance_reference",
        "triton": "ddm_rt.kernels.projected_guidance.fused:projected_guidance_fused",
    },
}

# (op, flavour) -> the packages that it needs beyond numpy. Every triton launcher takes torch tensors.
_NEEDS = {("indicator_attention", "reference"): ("torch",)}
_TRITON_NEEDS = ("triton", "torch")


def unavailable(op: str, flavour: str) -> str | None:
    """Why `flavour` of `op` can't run here, or None when it can.

    Triton's interpreter computes with numpy on the CPU: it serves tests that call a kernel's launcher themselves, and
    never makes the triton flavour available. Raises ValueError for an unknown op or flavour, listing the choices.
    """
    if op not in TABLE:
        raise ValueError(f"op {op!r} is unknown; ops: {', '.join(TABLE)}")
    if flavour not in IMPLEMENTATIONS:
        raise ValueError(f"flavour {flavour!r} of {op} is unknown; flavours: {', '.join(IMPLEMENTATIONS)}")
    for package in _TRITON_NEEDS if flavour == "triton" else _NEEDS.get((op, flavour), ()):
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
    if flavour == "triton":
        if not has_cuda_device():
            return "no CUDA device"
        if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("", "0", "false", "off", "no"):
            return "TRITON_INTERPRET is set, which is for tests"
    return None


def has_cuda_device() -> bool:
    """Whether torch is installed and sees a CUDA device. Imports torch where it is installed."""
    return importlib.util.find_spec("torch") is not None and bool(import_module("torch").cuda.is_available())


def load(op: str, flavour: str = "auto") -> Any:
    """The function that implements `op`. `auto` takes triton where it can run, else the reference, and logs it once.

    Raises RuntimeError when an explicit flavour can't run here.
    """
    if flavour == "auto":
        reason = unavailable(op, "triton")
        flavour = "triton" if reason is None else "reference"
        _say(op, flavour, reason)
    reason = unavailable(op, flavour)
    if reason is not None:
        raise RuntimeError(f"{flavour} {op} is not available: {reason}")
    module, function = TABLE[op][flavour].split(":")
    return getattr(import_module(module), function)


@cache
def _say(op: str, flavour: str, reason: str | None) -> None:
    if flavour == "triton":
        log.info("%s: triton", op)
    elif has_cuda_device():
        # A device that stays unused for this op costs its owner speed: that is worth a warning.
        log.warning("%s takes its reference on this machine's CUDA device: %s", op, reason)
    else:
        log.info("%s: reference (%s)", op, reason)
