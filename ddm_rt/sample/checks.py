"""What one field of a request may be: each check returns the value, and raises DdmError naming the field."""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeVar

from ddm_rt.errors import BundleError, DdmError
from ddm_rt.runtime import RuntimeConfig

_LEAST, _MOST = 1e-6, 1e6  # beyond them, float32 has no room for what is computed with a number

Choice = TypeVar("Choice", bound=StrEnum)


def indicator_guidance(config: RuntimeConfig, value: float | None, text_scale: float | None) -> float:
    """The scale on the code; where neither request nor bundle has one, the text's: joint guidance."""
    default = config.sampling.indicator_guidance_scale
    default = text_scale if default is None else default
    if default is None:
        raise BundleError(f"bundle {config.name!r}: field sampling.indicator_guidance_scale: expected a number")
    return scale("indicator_guidance_scale", value, default)


def side(config: RuntimeConfig, field: str, pixels: int | None) -> int:
    """Height or width in pixels."""
    if pixels is None:
        return config.image_size
    if pixels < config.size_multiple or pixels % config.size_multiple:
        raise DdmError(f"{field} is {pixels}; expected a multiple of {config.size_multiple}")
    return pixels


def scale(field: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if not (math.isfinite(value) and value >= 0):
        raise DdmError(f"{field} is {value}; expected a finite number, not negative")
    return float(value)


def numbers(field: str, value: Sequence[float] | None, *names: str) -> tuple[Any, ...] | None:
    """As many finite numbers as there are names. Raises DdmError naming the field."""
    if value is None:
        return None
    try:
        found = tuple(float(each) for each in value)
    except (TypeError, ValueError) as error:
        raise DdmError(f"{field} is {value!r}; expected numbers: {', '.join(names)}") from error
    if len(found) != len(names) or not all(map(math.isfinite, found)):
        raise DdmError(f"{field} is {found}; expected {len(names)} finite numbers: {', '.join(names)}")
    return found


def projection(value: Sequence[float] | None) -> tuple[float, float] | None:
    """Norm and η of adaptive projected guidance."""
    found = numbers("apg", value, "norm", "eta")
    if found is None:
        return None
    norm, eta = found
    if not (_LEAST <= norm <= _MOST and 0 <= eta <= _MOST):
        raise DdmError(f"apg is {found}; expected a norm of {_LEAST:g} to {_MOST:g}, and an eta of 0 to {_MOST:g}")
    return norm, eta


def token_noise(config: RuntimeConfig, value: Sequence[float] | None) -> tuple[float, float, float] | None:
    """Scale, end and begin of CADS."""
    found = numbers("cads", value, "scale", "end", "begin")
    if found is None:
        return None
    if config.prompt_free:
        raise DdmError(f"cads is given; bundle {config.name!r} is prompt-free: there are no tokens of a prompt")
    scale, end, begin = found
    if not (_LEAST <= scale <= _MOST and 0 <= end < begin <= 1):
        raise DdmError(
            f"cads is {found}; expected a scale of {_LEAST:g} to {_MOST:g}, and an end below a begin, both within 0 "
            "and 1"
        )
    return scale, end, begin


def choice(kind: type[Choice], value: str, field: str) -> Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise DdmError(f"{field} is {value!r}; expected one of: {', '.join(kind)}") from error
