"""`ddm-rt doctor` and `version`: what is installed, and what runs here."""

from typing import Annotated

from typer import Argument

import ddm_rt
from ddm_rt.bundle import Bundle
from ddm_rt.cli.app import of_machine, say, tell


@of_machine()
def doctor(
    bundle: Annotated[str | None, Argument(help="Tell also which backends and plans of this bundle fit.")] = None,
) -> None:
    """Tell what this machine can run, and why it can't run the rest.

    Example: ddm-rt doctor bundles/ours
    """
    from ddm_rt.workflows.doctor import checks

    for name, ok, detail in checks(None if bundle is None else Bundle.load(bundle)):
        reason, *more = detail.split("; ")
        tell(f"{name}: {reason}", " " * 5, "yes  " if ok else "no   ")
        for each in more:
            tell(each, " " * 7, " " * 7)


@of_machine()
def version() -> None:
    """Print the version, as --version does."""
    say(ddm_rt.__version__)
