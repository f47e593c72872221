"""What the figures were measured on, and what isn't installed here."""

import importlib.util
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

NEEDED = ("torch", "triton", "numpy")
# What sections use where it is present -> what stays unmeasured without it.
OPTIONAL = {
    "diffusers": "UNet steps and throughput",
    "pydantic": "the digits' UNet and all engines",
    "onnxruntime": "ONNX Runtime, and the images that TensorRT's are compared with",
    "tensorrt": "the backend tensorrt",
    "tensorrt_rtx": "the backend tensorrt-rtx",
    "cuda": "the TensorRT backends' device memory (cuda-bindings)",
}
_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "diffusers",
    "pydantic",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
_SMI = (
    "name",
    "driver_version",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "temperature.gpu",
    "utilization.gpu",
)


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def missing() -> list[str]:
    """One line for each package that isn't installed, with what it costs."""
    lines = [f"{name}: not installed; nothing runs without it" for name in NEEDED if not has(name)]
    lines += [f"{name}: not installed; not measured: {what}" for name, what in OPTIONAL.items() if not has(name)]
    if has("onnxruntime"):
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            lines.append(
                "onnxruntime-gpu: this onnxruntime has no CUDA provider; not measured: ONNX Runtime on the GPU"
            )
    return lines


def no_device() -> str | None:
    """Why no section can run here, or None."""
    if absent := [name for name in NEEDED if not has(name)]:
        return f"not installed: {', '.join(absent)}"
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def commit() -> str:
    """Of the working tree that this file lies in."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def facts() -> dict[str, Any]:
    """GPU, driver, clocks, versions and commit."""
    import torch

    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name,
        "architecture": f"sm_{device.major}{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "nvidia_smi": _nvidia_smi(),
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "versions": {name: number for name in _PACKAGES if (number := _version(name)) is not None},
        "commit": commit(),
        "missing": missing(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, str] | str:
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(_SMI)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError) as error:
        return f"nvidia-smi: {error}"
    return dict(zip(_SMI, (field.strip() for field in done.stdout.split(",")), strict=False))
