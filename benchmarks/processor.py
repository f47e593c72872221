"""Which processor a figure was measured on."""

import platform
from pathlib import Path


def processor() -> str:
    """What the system says of its processor; more than `platform` knows on Linux."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
