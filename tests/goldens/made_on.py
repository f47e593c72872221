"""On what a golden image was made: where all of it is the same here, so are the bytes."""

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ddm_rt.engine.machine import processor

THREADS = 1
_ABSENT = "absent"
_PACKAGES = {
    "onnxruntime": ("numpy", "onnxruntime"),
    "openvino": ("numpy", "openvino"),
    "torch": ("numpy", "torch", "diffusers", "transformers"),
}
_KINDS = ("sse4", "avx", "fma", "amx", "asimd", "sve")  # of instructions that change how a sum is rounded


def here(backend: str) -> dict[str, Any]:
    """What is recorded beside the images that `backend` made."""
    return {
        "processor": processor(),
        "instructions": instructions(),
        "threads": THREADS,
        "versions": {name: _version(name) for name in _PACKAGES[backend]},
    }


def unlike_here(images: Path) -> list[str]:
    """What the end of a run says where goldens in the folder `images` can't be compared to the byte; else nothing."""
    found: dict[str, None] = {}
    for path in sorted(images.glob("*/made_on.json")):
        backend = path.parent.name.rpartition("-")[2]
        if installed(backend):
            found |= dict.fromkeys(differences(json.loads(path.read_bytes()), backend))
    return [f"golden images to the byte (made on {'; '.join(found)})"] if found else []


def installed(package: str) -> bool:
    return _version(package) != _ABSENT


def instructions() -> str:
    """The vector instructions that the system lists: a virtual machine's processor may have no name of its own."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    listed = next((line.split(":", 1)[1].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return " ".join(sorted(flag for flag in listed if flag.startswith(_KINDS)))


def differences(made: dict[str, Any], backend: str) -> list[str]:
    """What is otherwise here, in words; none: the bytes must be equal."""
    now = here(backend)
    found = [
        f"{name} {was}, here {now['versions'][name]}"
        for name, was in made["versions"].items()
        if now["versions"][name] != was
    ]
    if made["processor"] != now["processor"]:
        found.insert(0, f"{made['processor']}, here {now['processor']}")
    elif made["instructions"] != now["instructions"]:
        found.insert(0, f"another {made['processor']}")
    return found


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return _ABSENT
