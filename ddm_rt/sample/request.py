"""What a request says, checked: prompts, scales, sizes and names. Every problem names the argument."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.runtime import RuntimeConfig
from ddm_rt.sample.balance.leave_alone import Words, names_one, words_for
from ddm_rt.sample.loop.tokenizers import check_text
from ddm_rt.sample.manifest import Request

Choice = TypeVar("Choice", bound=StrEnum)


@dataclass(frozen=True)
class Prompting:
    """The text of a request. All None, and nothing left alone, for bundles that take no prompts."""

    prompt: str | tuple[str, ...] | None  # a tuple where prompts differ: image i has prompt[i % len]
    negative_prompt: str | None
    guidance_scale: float | None
    words: tuple[str, ...] | None  # prompts that name one are left alone
    left_alone: tuple[int, ...]  # numbers of the images whose prompt names one


def prompting(
    bundle: Bundle,
    *,
    prompt: str | Sequence[str] | None,
    negative_prompt: str | None,
    guidance_scale: float | None,
    leave_alone: Words | None,
    scope: str | None,
    balance: Balance,
    codes: Sequence[int] | None,
    n: int,
) -> Prompting:
    """Raises DdmError naming the argument that this bundle doesn't take."""
    config = bundle.config
    if not (prompt is None or isinstance(prompt, Sequence)):
        raise DdmError(f"prompt is {prompt!r}; expected text, or a list of texts")
    given = [prompt or ""] if prompt is None or isinstance(prompt, str) else list(prompt) or [""]
    if config.prompt_free:
        _check_no_prompt(config, given, negative_prompt, guidance_scale, leave_alone)
        return Prompting(None, None, None, None, ())
    for text in given:
        check_text("prompt", text)
    if negative_prompt is not None:
        check_text("negative_prompt", negative_prompt)
    if negative_prompt and not config.takes_negative_prompt:
        raise DdmError(f"negative_prompt is given; bundle {config.name!r} is a student: it has no branch for one")
    words = words_for(leave_alone, scope)
    if leave_alone is not None and (balance is Balance.ON or codes is not None):
        reason = "codes are given" if codes is not None else 'balance is "on"'
        raise DdmError(f'leave_alone is given, but {reason}; it goes with balance "auto"')
    named = [names_one(text, words) for text in given]
    return Prompting(
        prompt=given[0] if len(set(given)) == 1 else tuple(given),
        negative_prompt=negative_prompt,
        guidance_scale=scale("guidance_scale", guidance_scale, config.sampling.guidance_scale),
        words=None if leave_alone is None else words,
        left_alone=tuple(i for i in range(n) if named[i % len(given)]) if any(named) else (),
    )


def _check_no_prompt(
    config: RuntimeConfig,
    prompts: Sequence[str],
    negative_prompt: str | None,
    guidance_scale: float | None,
    leave_alone: Words | None,
) -> None:
    for field, values in (("prompt", prompts), ("negative_prompt", [negative_prompt or ""])):
        if any(values):
            raise DdmError(f"{field} is given; bundle {config.name!r} is prompt-free and takes none")
    if guidance_scale is not None:
        raise DdmError(
            f"guidance_scale is {guidance_scale}; bundle {config.name!r} is prompt-free: use indicator_guidance_scale"
        )
    if leave_alone is not None:
        raise DdmError(f"leave_alone is given; bundle {config.name!r} is prompt-free and takes no prompts")


def indicator_guidance(config: RuntimeConfig, value: float | None, text_scale: float | None) -> float:
    """The scale on the code; where neither request nor bundle has one, the text's: joint guidance."""
    default = config.sampling.indicator_guidance_scale
    default = text_scale if default is None else default
    if default is None:
        raise BundleError(f"bundle {config.name!r}: field sampling.indicator_guidance_scale: expected a number")
    return scale("indicator_guidance_scale", value, default)


def texts_of(bundle: Bundle, request: Request, recorded: Sequence[str | None]) -> list[str | None]:
    """The prompt of each image of a manifest. Raises DdmError where request and bundle don't go together."""
    prompt_free = bundle.config.prompt_free
    for field, value in (("prompt", request.prompt), ("guidance_scale", request.guidance_scale)):
        if (value is None) != prompt_free:
            wanted = "none: the bundle is prompt-free" if prompt_free else "one: the bundle takes prompts"
            raise DdmError(f"manifest: field request.{field}: expected {wanted}")
    found: list[str | None] = []
    for number, own in enumerate(recorded):
        shared = None if isinstance(request.prompt, tuple) else request.prompt
        text = shared if own is None else own
        if (text is None) != prompt_free:
            raise DdmError(f"manifest: field images.{number}.prompt: expected {'none' if prompt_free else 'text'}")
        found.append(text)
    return found


def null_text(config: RuntimeConfig, negative_prompt: str | None) -> str | None:
    """What stands in for no prompt: the negative one, the empty one, or None where zeros do."""
    if negative_prompt is not None:
        return negative_prompt
    return None if config.prompt_free or config.empty_negative_is_zero else ""


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


def choice(kind: type[Choice], value: str, field: str) -> Choice:
    try:
        return kind(value)
    except ValueError as error:
        raise DdmError(f"{field} is {value!r}; expected one of: {', '.join(kind)}") from error
