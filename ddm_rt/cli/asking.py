"""Options of the command line for the fields of a request, made of what `Request` says about them."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from ddm_rt.sample.balance.leave_alone import parse_words
from ddm_rt.sample.request import Request, told_fields

# Fields that the command line takes otherwise: their type, and what is said of them.
_OTHERWISE: dict[str, tuple[Any, str | None]] = {
    "prompt": (list[str] | None, None),
    "leave_alone": (
        str | None,
        "woman,man: prompts with one of these words get the null code. Or a .json: scope -> words.",
    ),
}


def asks(*only: str, **defaults: Any) -> Callable[[Callable[..., Any]], Any]:
    """Puts options for the fields of `Request` in the place of a command's parameter `request`, which it gets made.

    All of them, or `only` those; `defaults` are the command's own.
    """
    told = {name: field for name, field in told_fields().items() if name in (only or told_fields())}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        options = []
        for name, (hint, default, _, about) in told.items():
            kind, text = _OTHERWISE.get(name, (hint, None))
            flag = (about.name or name).replace("_", "-")
            option = typer.Option(f"--{flag}" if len(flag) > 1 else f"-{flag}", help=text or about.help)
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
