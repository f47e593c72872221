"""What something was measured on: figures, and what rests on them, hold for one kind of machine and its load."""

import hashlib
import json
import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ddm_rt.config import Frozen
from ddm_rt.engine.contract import usable_cores
from ddm_rt.engine.tensorrt import cuda
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256

_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # environment variables that forbid some


class Machine(Frozen):
    """A stamp beside every timing."""

    system: str
    processor: str
    cpus: int  # that this process may use
    clock_mhz: float | None  # of the first one, now
    memory_gib: float
    gpu: str | None
    python: str
    load_average: float | None  # of the last minute: above the threads in use, others took part of the machine


def machine() -> Machine:
    """This machine, now."""
    try:
        device = cuda.device_info()
        gpu = f"{device.name}, {device.architecture}, driver of CUDA {device.driver_version}"
    except DdmError:
        gpu = None
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=processor(),
        cpus=usable_cores(),
        clock_mhz=next((float(value) for value in _described("cpu MHz")), None),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=gpu,
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    )


def installed(package: str) -> str | None:
    """The package's version; None where it isn't installed. Imports nothing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """What the system says of its processor; more than `platform` knows on Linux."""
    return next(iter(_described("model name")), platform.processor() or "unknown processor")


def instruction_set() -> str:
    """The processor and which of its instructions libraries may use: what the bits of a computation depend on."""
    flags = next(iter(_described("flags") or _described("Features")), platform.machine())
    limits = {name: value for name, value in os.environ.items() if name in _LIMITS}
    return f"{processor()}; {' '.join(sorted(flags.split()))}; {json.dumps(limits, sort_keys=True)}"


@cache
def engine_code() -> str:
    """sha256 of this package's engines: how they open and rewrite graphs decides bits, too."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256("".join(sha256(file) for file in files).encode()).hexdigest()


def _described(name: str) -> list[str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith(name)]
