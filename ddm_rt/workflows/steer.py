"""`ddm-rt steer`: codes for a finished model, which steer it without any training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddm_rt.config import RunConfig, SteeringSite
from ddm_rt.errors import DdmError
from ddm_rt.model.assemble import read_file
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import Codes
from ddm_rt.train.steering import run


def steer(
    source: Path,
    out: Path,
    fields: Mapping[str, Any] | None = None,
    *,
    site: str | None = None,
    strength: float | None = None,
    steered_from: float = 0.0,
    images: int | None = None,
    contrast: str | None = None,
    variant: str | None = None,
    progress: Mapping[str, OnFigures] | None = None,
) -> tuple[RunConfig, Codes]:
    """Write the run `out`: the model of `source` with codes that steer it; returns its configuration and its codes.

    `contrast` has prompts with | between them. The rest, and what is raised, is as in `train.steering.run.steer`;
    DdmError also for an unknown site.
    """
    if site is not None and site not in set(SteeringSite):
        raise DdmError(f"--site {site!r}: expected one of: {', '.join(SteeringSite)}")
    run.steer(
        source,
        out,
        fields,
        site=None if site is None else SteeringSite(site),
        strength=strength,
        steered_from=steered_from,
        images=images,
        contrast=_prompts(contrast),
        variant=variant,
        progress=progress,
    )
    return read_file(RunConfig, out / "config.json"), read_file(Codes, out / "codes.json")


def _prompts(text: str | None) -> Sequence[str]:
    if text is None:
        return ()
    found = [prompt.strip() for prompt in text.split("|")]
    if not all(found) or len(found) < 2:
        raise DdmError(f"--contrast {text!r}: expected two or more prompts with | between them")
    return found
