"""Arguments that hold more than one value: FIELD=VALUE, NAME=PATH, SAMPLER:STEPS, MIN,OPT,MAX."""

import json
from pathlib import Path
from typing import Any

from ddm_rt.config import SamplerName
from ddm_rt.errors import DdmError


def assignment(text: str) -> tuple[str, Any]:
    """FIELD=VALUE, the value as JSON where it is some. Raises DdmError without a sign between them."""
    name, sign, value = text.partition("=")
    if not sign:
        raise DdmError(f"--set {text!r}: expected FIELD=VALUE, for example train.batch_size=32")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def samplers(text: str) -> list[tuple[SamplerName, int]]:
    """SAMPLER:STEPS,SAMPLER:STEPS. Raises DdmError for anything else."""
    found = []
    for part in text.split(","):
        name, _, steps = part.strip().partition(":")
        if name not in [*SamplerName] or not steps.isdecimal():
            raise DdmError(
                f"--tables {part!r}: expected SAMPLER:STEPS, for example ddim:25; samplers: {', '.join(SamplerName)}"
            )
        found.append((SamplerName(name), int(steps)))
    return found


def named(text: str) -> tuple[str, Path]:
    """NAME=PATH, or a path that gives its own last part as the name."""
    name, sign, path = text.partition("=")
    return (name, Path(path)) if sign else (Path(text).name, Path(text))


def positive(option: str, text: str) -> int:
    """A number of at least 1. Raises DdmError naming the option."""
    if not (text.strip().isascii() and text.strip().isdigit() and int(text) >= 1):
        raise DdmError(f"{option} {text!r}: expected a number of at least 1")
    return int(text)


def sizes(option: str, text: str) -> tuple[int, int, int]:
    """MIN,OPT,MAX, or one number for all three. Raises DdmError naming the option; their order isn't checked here."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise DdmError(f"{option} {text!r}: expected MIN,OPT,MAX or one number, for example 1,8,32")
    numbers = [int(part) for part in parts]
    if min(numbers) < 1:
        raise DdmError(f"{option} {text!r}: expected sizes of at least 1")
    return numbers[0], numbers[len(parts) // 2], numbers[-1]
