"""GPUs of a Ray cluster: how many there are, and which one a process of Ray's was given."""

import os
import socket
from collections.abc import Sequence

import ray

from ddm_rt.engine.devices import CPU, CUDA
from ddm_rt.errors import DdmError

_VISIBLE = "CUDA_VISIBLE_DEVICES"


def count() -> int:
    """Of the cluster that this process is connected to: those that nobody holds."""
    return int(ray.available_resources().get("GPU", 0))


def own_device() -> str:
    """Where this process of Ray's computes, as `Pipeline.load` takes it."""
    return device_of(_own_ids(), os.environ.get(_VISIBLE))


def own_place() -> str:
    """The same for a log: with the name of the machine, and the GPU's number there."""
    ids = _own_ids()
    gpu = f"GPU {ids[0]} of " if ids else ""
    return f"{own_device()}, {gpu}{socket.gethostname()}"


def device_of(ids: Sequence[str], visible: str | None) -> str:
    """The device of a process to which Ray gave the GPUs `ids` and which has `visible` for CUDA_VISIBLE_DEVICES.

    It is the first of them, or the CPU. Ray shows the process its own GPUs alone, unless it was told to show all. To a
    process that reserves none, newer versions of Ray show all. Raises DdmError where the process doesn't see its GPU.
    """
    if not ids:
        return CPU
    own = ids[0]
    if visible is None and own.isdigit():
        return f"{CUDA}:{own}"
    shown = (visible or "").split(",")
    if own not in shown:
        raise DdmError(f"Ray gave this process the GPU {own}, and {_VISIBLE} is {visible!r}; expected that GPU there")
    return f"{CUDA}:{shown.index(own)}"


def _own_ids() -> list[str]:
    found: dict[str, list[str]] = ray.get_runtime_context().get_accelerator_ids()
    return found.get("GPU", [])
