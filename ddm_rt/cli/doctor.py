"""`ddm-rt doctor`: each backend and kernel flavour, available or the reason why not."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from ddm_rt.engine.backends import availability
from ddm_rt.kernels import dispatch

PACKAGES = ("numpy", "onnxruntime", "torch", "diffusers", "onnx", "triton", "tensorrt", "tensorrt-rtx")


def checks() -> list[tuple[str, bool, str]]:
    """(part, available, detail) for the machine, packages, backends and kernels."""
    rows = [
        (
            "machine",
            True,
            f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        )
    ]
    for name in PACKAGES:
        found = _version(name)
        rows.append((f"package {name}", found is not None, found or "not installed"))
    for name, reason in availability().items():
        rows.append((f"backend {name}", reason is None, reason or "ready"))
    for op, flavours in dispatch.TABLE.items():
        for flavour in dispatch.IMPLEMENTATIONS:
            reason = dispatch.unavailable(op, flavour)
            detail = reason or f"{flavours[flavour].split(':')[0]}"
            rows.append((f"kernel {op}: {flavour}", reason is None, detail))
    return rows


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
