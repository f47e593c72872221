"""The command-line program as an object: where it prints, and what its commands share."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ddm_rt.config import Backend, SamplerName

app = typer.Typer(
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

Out = Annotated[Path, typer.Option("--out", help="Directory to write; must not exist, or be empty.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; by default all.")]

Sampler = Annotated[str | None, typer.Option(help=f"One of: {', '.join(SamplerName)}.")]
Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", help="Text; given several times, the images take them in turn.")
]
NegativePrompt = Annotated[str | None, typer.Option(help="Text to stay away from.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance on the prompt.")]
IndicatorGuidance = Annotated[
    float | None,
    typer.Option(help="Guidance on the code; other than --guidance-scale, each step takes half as long again."),
]
Pixels = Annotated[int | None, typer.Option(help="Pixels.")]
DeviceName = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda or cuda:N; by default a GPU where the backend can use one."),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help="What to compute in; by default the bundle's own, or what a recorded gate allows. Backend torch computes "
        "an fp32 bundle in bf16 or fp16.",
    ),
]
ModeName = Annotated[
    str,
    typer.Option(
        "--mode",
        help="Where the batch size changes bits: throughput takes the largest sizes, latency the smallest.",
    ),
]
BackendName = Annotated[str, typer.Option(help=f"One of: {', '.join(Backend)}.")]


@app.callback()
def program(
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Say why, too: what spoke against other backends."),
    ] = False,
) -> None:
    if verbose:
        logging.getLogger("ddm_rt").setLevel(logging.DEBUG)


def say(text: str) -> None:
    """One line or more on stdout, unbroken: paths are there to be copied."""
    console.print(text, soft_wrap=True, highlight=False)


@app.command()
def version() -> None:
    """Print the version."""
    import ddm_rt

    say(ddm_rt.__version__)
