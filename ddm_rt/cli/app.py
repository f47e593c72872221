"""The command-line program as an object, and where it prints."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich.console import Console
from typer import Option, Typer

import ddm_rt
from ddm_rt.cli.help import Command, Program, wrapped

app = Typer(
    name="ddm-rt",
    cls=Program,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(markup=False)  # a path may hold brackets
errors = Console(stderr=True)


def _command(title: str, name: str | None = None, **groups: str) -> Callable[[Callable[..., Any]], Any]:
    """`app.command`, under this title in `ddm-rt --help`. `groups` has the names of options by the title of a group."""
    named = {group.replace("_", " "): options for group, options in groups.items()}
    return app.command(name, cls=partial(Command, named), rich_help_panel=title)  # type: ignore[arg-type]


makes_models = partial(_command, "Make a model")
makes_images = partial(_command, "Make images")
measures = partial(_command, "Measure")
serves = partial(_command, "Serve")
of_machine = partial(_command, "This machine")


def _print_version(asked: bool) -> None:
    if asked:
        say(ddm_rt.__version__)
        raise typer.Exit


@app.callback(invoke_without_command=True)
def program(
    context: typer.Context,
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Also tell why a backend was chosen, and what spoke against the others.")
    ] = False,
    version: Annotated[
        bool, Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """ddm-rt makes balanced images with diffusion models. You don't have to tell it which groups to balance.

    Three commands to begin with. This one makes 64 images with a small model that comes with ddm-rt, in seconds:

        ddm-rt sample digits -n 64 --out out/

    This one trains three models on biased digits and writes a report that compares them, in minutes:

        ddm-rt demo

    This one trains a model on a folder of your own photos, without labels:

        ddm-rt train --data photos/ --image-size 64 --channels 3 --out runs/photos

    `ddm-rt COMMAND --help` explains a command and shows examples.
    """
    if verbose:
        logging.getLogger("ddm_rt").setLevel(logging.DEBUG)
    if context.invoked_subcommand is None:
        print(context.get_help())


def tell(text: str, indent: str = "", first: str = "") -> None:
    """Text on stdout; where that is a terminal, lines are broken between words alone."""
    say(wrapped(text, indent, console.width, first).rstrip() if console.is_terminal else first + text)


def say(text: str) -> None:
    """One line or more on stdout, unbroken: paths are there to be copied."""
    console.print(text, soft_wrap=True, highlight=False)
