"""The command-line program as an object, and where it prints."""

import logging
from typing import Annotated

from rich.console import Console
from typer import Option, Typer

app = Typer(
    name="ddm-rt",
    help="Balanced sampling from diffusion models, without being told which groups to balance.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
console = Console(markup=False)  # a path may hold brackets
errors = Console(stderr=True)


@app.callback()
def program(
    verbose: Annotated[
        bool, Option("--verbose", "-v", help="Say why, too: what spoke against other backends.")
    ] = False,
) -> None:
    if verbose:
        logging.getLogger("ddm_rt").setLevel(logging.DEBUG)


def say(text: str) -> None:
    """One line or more on stdout, unbroken: paths are there to be copied."""
    console.print(text, soft_wrap=True, highlight=False)
