"""`ddm-rt train`: a model from images, from nothing or from a Stable Diffusion checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddm_rt.errors import DdmError
from ddm_rt.presets import resolve
from ddm_rt.progress import OnFigures
from ddm_rt.train import run
from ddm_rt.train.checkpoint import prepare
from ddm_rt.train.distributed import chosen_device


def train(
    out: Path,
    fields: Mapping[str, Any],
    *,
    preset: str | None = None,
    base: Path | None = None,
    variant: str | None = None,
    progress: Mapping[str, OnFigures] | None = None,
    grid_every: int | None = None,
) -> Path:
    """Train a model into the run directory `out`, or go on with what is there; returns `out`.

    The configuration is that of `preset` (by default digits; with `base`, checkpoint) with dotted `fields` set. `base`
    is the folder of a checkpoint to start from, `variant` that of its weight files. What `fields` leave open of
    `train.run.device_fields` is the device's. `progress`, `grid_every` and what is raised are as in `train.run.train`;
    DdmError also for options that don't go together.
    """
    of_base: dict[str, Any] = {}
    if base is not None:
        if "data.source" not in fields:
            raise DdmError("--data: missing; with --base it is a folder of images")
        of_base = prepare.fields(base, variant)
    elif variant is not None:
        raise DdmError("--variant needs --base, the checkpoint whose files it picks")
    of_device = run.device_fields(out, chosen_device(), pixels=base is None)
    config = resolve(preset or ("digits" if base is None else "checkpoint"), {**of_base, **of_device, **fields})
    return run.train(config, out, progress=progress, grid_every=grid_every)
