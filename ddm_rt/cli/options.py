"""Options that several commands have, and how values that hold more than one thing are read."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ddm_rt.config import Backend
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.leave_alone import parse_words
from ddm_rt.sample.request import Request, told_fields

Out = Annotated[Path, Option(help="Directory to write. It must not exist, or be empty.")]
Seed = Annotated[int, Option(help="Seed of the images. The same seed gives the same images.")]
Judge = Annotated[str, Option(help="Classifier that tells the groups apart: digits, or an ONNX file.")]
Groups = Annotated[str, Option(help="Groups to measure: two or more classes of the judge, with commas between them.")]
Classes = Annotated[str | None, Option(help="Names of the judge's classes, if its file has none.")]
Ledger = Annotated[Path | None, Option(help="File that keeps the counts of scopes. It is made where there is none.")]
Fsync = Annotated[bool, Option(help="Let the ledger survive a power loss, too. Each request takes longer.")]
BackendName = Annotated[str, Option(help=f"Backend that computes the images, one of: {', '.join(Backend)}.")]
DeviceName = Annotated[str | None, Option(help="Device: cpu, cuda or cuda:N. By default a GPU if possible.")]
PrecisionName = Annotated[
    str | None,
    Option(help="Precision to compute in (torch: fp32, bf16, fp16). By default the bundle's, or a recorded one."),
]
ModeName = Annotated[str, Option(help="Batch sizes that are used: large ones (throughput) or small ones (latency).")]
Threads = Annotated[int | None, Option(min=1, help="Number of CPU threads. By default all are used.")]

# Fields that the command line takes otherwise: their type, and what is said of them.
_OTHERWISE: dict[str, tuple[Any, str | None]] = {
    "prompt": (list[str] | None, None),
    "guidance_interval": (str | None, "A,B: guide the steps from A to B alone, fractions of all. Others cost less."),
    "apg": (
        str | None,
        "NORM[,ETA]: projected guidance. A difference has this norm at most; along the output, ETA (0) of it is kept.",
    ),
    "cads": (
        str | None,
        "SCALE[,END,BEGIN]: noise on the prompt's tokens (.25,.6,.9), so that the images of one prompt differ more.",
    ),
    "cache": (
        str | None,
        "Steps that call the model, by a cache of the bundle: a number, auto (the fewest that change nothing) or off.",
    ),
    "leave_alone": (
        str | None,
        "woman,man: prompts with one of these words get the null code. Or a .json file of words by scope.",
    ),
}


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the user gave, so that others keep the defaults of what they are for."""
    return {name: value for name, value in options.items() if value is not None}


def refuse(options: Mapping[str, Any], why: str) -> None:
    """Raises DdmError naming the first of these options that is neither None nor False, and why it doesn't go."""
    for name, value in options.items():
        if value is not None and value is not False:
            raise DdmError(f"{name}: {why}")


def assignments(texts: Sequence[str] | None) -> dict[str, Any]:
    """FIELD=VALUE each, the value as JSON where it is some. Raises DdmError without a sign between them."""
    found: dict[str, Any] = {}
    for text in texts or ():
        name, sign, value = text.partition("=")
        if not sign:
            raise DdmError(f"--set {text!r}: expected FIELD=VALUE, for example train.batch_size=32")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def flag(name: str, default: Any = None) -> str:
    """The option that gives a field another value than its default."""
    dashed = name.replace("_", "-")
    return f"-{name}" if len(name) == 1 else f"--no-{dashed}" if default is True else f"--{dashed}"


def names(text: str | None) -> tuple[str, ...] | None:
    """Names by comma; None where there is no text."""
    return tuple(name.strip() for name in text.split(",")) if text else None


def named(text: str) -> tuple[str, Path]:
    """NAME=PATH, or a path that gives its own last part as the name."""
    name, sign, path = text.partition("=")
    return (name, Path(path)) if sign else (Path(text).name, Path(text))


def number(option: str, text: str) -> int:
    """A whole number of at least 1. Raises DdmError naming the option."""
    if not (text.strip().isascii() and text.strip().isdigit() and int(text) >= 1):
        raise DdmError(f"{option} {text!r}: expected a number of at least 1")
    return int(text)


# Fields of `Request` that are several numbers: an example, and the defaults of those that may be left out at the end.
_NUMBERS = {"guidance_interval": (".2,.8", ()), "apg": ("15,.5", (0.0,)), "cads": (".25,.6,.9", (0.6, 0.9))}


def numbers(option: str, text: str, example: str, defaults: Sequence[float] = ()) -> list[float]:
    """As many numbers by comma as the example has, or without the last ones, which have defaults.

    Raises DdmError naming the option.
    """
    expected = len(example.split(","))
    try:
        found = [float(part) for part in text.split(",")] if text.isascii() and "_" not in text else []
    except ValueError:
        found = []
    if len(found) == expected - len(defaults):
        found += defaults
    if len(found) != expected:
        short = ",".join(example.split(",")[: expected - len(defaults)])
        also = f", or {short}" if defaults else ""
        raise DdmError(f"{option} {text!r}: expected numbers with commas between them, for example {example}{also}")
    return found


def sizes(option: str, text: str) -> tuple[int, int, int]:
    """MIN,OPT,MAX, or one number for all three. Raises DdmError naming the option; their order isn't checked here."""
    parts = text.split(",")
    if len(parts) not in (1, 3) or not all(part.strip().isascii() and part.strip().isdigit() for part in parts):
        raise DdmError(f"{option} {text!r}: expected MIN,OPT,MAX or one number, for example 1,8,32")
    found = [int(part) for part in parts]
    if min(found) < 1:
        raise DdmError(f"{option} {text!r}: expected sizes of at least 1")
    return found[0], found[len(parts) // 2], found[-1]


def asks(*only: str, **defaults: Any) -> Callable[[Callable[..., Any]], Any]:
    """Puts options for the fields of `Request` in the place of a command's parameter `request`, which it gets made.

    All of them, or `only` those; `defaults` are the command's own.
    """
    told = {name: field for name, field in told_fields().items() if name in (only or told_fields())}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        options = []
        for name, (hint, default, _, about) in told.items():
            kind, text = _OTHERWISE.get(name, (hint, None))
            spelled = flag(about.name or name)
            option = Option(f"{spelled}/{flag(name, True)}" if default is True else spelled, help=text or about.help)
            options.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=defaults.get(name, default),
                    annotation=Annotated[kind, option],
                )
            )

        @wraps(command)
        def run(**given: Any) -> Any:
            asked = {name: given.pop(name) for name in told}
            if isinstance(asked.get("leave_alone"), str):
                asked["leave_alone"] = parse_words(asked["leave_alone"])
            for name, (example, defaults) in _NUMBERS.items():
                if isinstance(asked.get(name), str):
                    asked[name] = numbers(flag(name), asked[name], example, defaults)
            return command(request=Request(**asked), **given)

        own = inspect.signature(command, eval_str=True).parameters
        every: list[inspect.Parameter] = []
        for parameter in own.values():
            kept = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            every += options if parameter.name == "request" else [kept]
        run.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in every}
        return run

    return decorate


# For commands that let bundles generate, and take the rest of the request from elsewhere.
prompts = asks("prompt", "negative_prompt", "guidance_scale")
