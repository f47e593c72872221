"""Where a backend computes: the CPU, or one of the CUDA devices that the driver shows this process."""

import ctypes
import re
from dataclasses import dataclass

from ddm_rt.engine.tensorrt import cuda
from ddm_rt.errors import DdmError

CPU, CUDA = "cpu", "cuda"


@dataclass(frozen=True)
class Device:
    """A kind of device and its number, as CUDA_VISIBLE_DEVICES leaves them; slices of MIG count as devices."""

    kind: str  # "cpu" or "cuda"
    ordinal: int = 0

    @classmethod
    def parse(cls, text: str) -> "Device":
        """ "cpu", "cuda" or "cuda:1". Raises DdmError for anything else."""
        found = re.fullmatch(r"(cpu|cuda)(?::([0-9]{1,3}))?", text)
        if found is None or (found[1] == CPU and found[2] is not None):
            raise DdmError(f"device {text!r} is unknown; expected cpu, cuda, or cuda:N with the number of a device")
        return cls(found[1], int(found[2] or 0))

    def __str__(self) -> str:
        return self.kind if self.kind == CPU else f"{self.kind}:{self.ordinal}"


CPU_DEVICE, CUDA_DEVICE = Device(CPU), Device(CUDA)  # where nothing else is said


def invisible() -> str | None:
    """Why this process sees no CUDA device, or None. It needs no package: torch brings a runtime of its own."""
    if cuda.has_bindings():
        return cuda.unavailable()
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return cuda.NO_DRIVER
    count = ctypes.c_int(0)
    if library.cuInit(0) != 0 or library.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return "the CUDA driver shows no device"
    return None


def visible_name() -> str:
    """The first device's name, where there is one."""
    return cuda.device_info().name if cuda.has_bindings() else "NVIDIA"
