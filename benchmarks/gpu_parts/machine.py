"""What the figures were measured on, and what isn't installed here."""

import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_parts.rig import Rig  # and with it torch, which may be missing

NEEDED = ("torch", "triton", "numpy")
# What sections use where it is present -> what stays unmeasured without it. `gpu.py --fetch` brings the first ones.
OPTIONAL = {
    "diffusers": "images of SD 1.5 and SDXL, byte identity, and training",
    "transformers": "the same",
    "pydantic": "the same, and all engines",
    "onnx": "the same",
    "peft": "training with factors",
    "sklearn": "training",
    "onnxruntime": "ONNX Runtime, and the images that TensorRT's are compared with",
    "tensorrt": "the backend tensorrt",
    "tensorrt_rtx": "the backend tensorrt-rtx",
    "cuda": "the TensorRT backends' device memory (cuda-bindings)",
}
# The networks and the engine need all of these.
FOR_MODELS = ("diffusers", "transformers", "pydantic", "onnx", "safetensors")
_PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "diffusers",
    "transformers",
    "peft",
    "pydantic",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
_SOURCES = ("ddm_rt/**/*.py", "kernels/**/*.py", "benchmarks/gpu.py", "benchmarks/gpu_parts/*.py")
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
    if not any(map(shutil.which, filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")))):
        lines.append("a C compiler: not found; Triton compiles its launchers with one, so no kernel runs without it")
    if has("onnxruntime"):
        import onnxruntime

        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            lines.append(
                "onnxruntime-gpu: this onnxruntime has no CUDA provider; not measured: ONNX Runtime on the GPU"
            )
    return lines


def needed_for(module: str) -> str | None:
    """Why a section of that module can't run here, or None."""
    packages = {"trajectories": FOR_MODELS, "identity": FOR_MODELS, "training": (*FOR_MODELS, "peft", "sklearn")}
    absent = [name for name in packages.get(module.rpartition(".")[2], ()) if not has(name)]
    return f"not installed: {', '.join(absent)}" if absent else None


def no_device() -> str | None:
    """Why no section can run here, or None."""
    if absent := [name for name in NEEDED if not has(name)]:
        return f"not installed: {', '.join(absent)}"
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


@cache
def commit() -> str:
    """Of the working tree that this file lies in."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"


@cache
def source() -> str:
    """A digest of the code that is measured: it names it where git isn't there, or the tree isn't committed."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _SOURCES for path in root.glob(pattern)}):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def device(rig: "Rig") -> str:
    import torch

    return f"none: dry run on {platform.machine()}" if rig.dry else str(torch.cuda.get_device_properties(0).name)


def versions() -> dict[str, str]:
    return {name: number for name in _PACKAGES if (number := _version(name)) is not None}


def key(rig: "Rig") -> dict[str, Any]:
    """What must be equal for a section's rows to be kept."""
    return {"commit": commit(), "source": source(), "device": device(rig), "versions": versions(), "dry": rig.dry}


def stamp(rig: "Rig") -> dict[str, Any]:
    """What every row says of its origin."""
    short = ", ".join(f"{name} {number}" for name, number in versions().items())
    row = {"device": device(rig), "commit": commit(), "source": source(), "versions": short}
    return row | ({"dry": True} if rig.dry else {})


def facts(rig: "Rig") -> dict[str, Any]:
    """GPU, driver, clocks, versions and commit."""
    import torch

    found: dict[str, Any] = {"gpu": device(rig), "architecture": "none"}
    if not rig.dry:
        card = torch.cuda.get_device_properties(0)
        found["architecture"] = f"sm_{card.major}{card.minor}"
        found |= {"multiprocessors": card.multi_processor_count, "memory_gib": round(card.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "nvidia_smi": _nvidia_smi()}
    return found | {
        "host": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        "versions": versions(),
        "commit": commit(),
        "source": source(),
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
