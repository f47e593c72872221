"""Images with codes, and what a model makes of them: what directions are computed from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddm_rt.config import RunConfig, SteeringSite
from ddm_rt.files import write_atomic
from ddm_rt.model.parts import Model
from ddm_rt.model.unet import DDM
from ddm_rt.progress import OnFigures
from ddm_rt.runtime import SharedOf
from ddm_rt.train.codes.discover import describe
from ddm_rt.train.pixels import prepare_pixels
from ddm_rt.train.steering import responses
from ddm_rt.train.trainee import Material

GRID = 8  # timesteps at which responses of attention are measured
IMAGES = 256  # of each code that are measured there, at most
DRAWN = 16  # images of each contrast prompt

Condition = Callable[[Tensor], Mapping[str, Tensor]]  # rows int64 [B] -> cond


@dataclass(frozen=True)
class Measured:
    """Responses float32 [N,W] of each place, and whose they are."""

    at: dict[str, Tensor]
    code: Tensor  # int64 [N]
    shared_of: SharedOf
    timesteps: tuple[int, ...] = ()
    encoder: str | None = None  # that gave the features of codes


def measured(
    config: RunConfig,
    model: Model,
    out: Path,
    device: torch.device,
    site: SteeringSite,
    contrast: Sequence[str],
    images: int | None,
    progress: Mapping[str, OnFigures],
) -> Measured:
    """Find codes, and write them into the run directory `out`; then measure. See `run.steer` for the rest."""
    if isinstance(model, DDM):
        material = prepare_pixels(config, out, device, progress)
        return _of_prediction(material)
    from ddm_rt.train.checkpoint import prepare  # with transformers, which pixels don't need

    if not contrast:
        material = prepare.prepare_as_it_is(config, model, out, device, progress)
        if site is SteeringSite.PREDICTION:
            return _of_prediction(material)
        every, shared_of, encoder = _codes(material), material.classes.shared_of, material.encoder
        rows = _evenly(every, images or IMAGES, config.train.seed)
        latents, code, subject = material.latents[rows], every[rows], material.make_subject()

        def condition(index: Tensor) -> Mapping[str, Tensor]:
            with_text = torch.zeros(len(index), dtype=torch.bool)
            return subject.condition(rows[index], responses.null_codes(index, device), with_text)

    else:
        assert config.base is not None
        asked = prepare.prompted(config, model, contrast, out / config.base.path)

        def on(prompts: Tensor) -> Mapping[str, Tensor]:
            return asked.condition_on(prompts, responses.null_codes(prompts, device))

        count, encoder = images or DRAWN, None
        latents = responses.drawn(model, on, len(contrast), count, config, device, progress.get("drawing"))
        code = torch.arange(len(contrast)).repeat_interleave(count)
        shared_of = _write_codes(code, contrast, out)
        if site is SteeringSite.PREDICTION:
            return Measured(responses.of_prediction(latents), code, shared_of)

        def condition(index: Tensor) -> Mapping[str, Tensor]:
            return on(code[index] + 1)

    last = config.schedule.num_train_timesteps
    timesteps = tuple(round((i + 0.5) * last / GRID) for i in range(GRID))
    found = responses.of_attention(model, latents, condition, config, timesteps, device, progress.get("responses"))
    return Measured(found, code, shared_of, timesteps, encoder)


def _of_prediction(material: Material) -> Measured:
    """Of all images: nothing is computed."""
    at = responses.of_prediction(material.latents)
    return Measured(at, _codes(material), material.classes.shared_of, encoder=material.encoder)


def _codes(material: Material) -> Tensor:
    assert material.classes.y is not None
    return material.classes.y


def _evenly(code: Tensor, most: int, seed: int) -> Tensor:
    """Rows of `code` int64 [N], in order: at most so many of each code, drawn from the seed."""
    order = torch.randperm(len(code), generator=torch.Generator().manual_seed(seed))
    kept = [order[code[order] == k][:most] for k in range(int(code.max()) + 1)]
    return torch.cat(kept).sort().values


def _write_codes(code: Tensor, contrast: Sequence[str], out: Path) -> SharedOf:
    codes = describe(code.numpy(), np.arange(len(contrast)), origin="contrast")
    codes = codes.model_copy(update={"rule": {"prompts": list(contrast)}})
    write_atomic(out / "codes.json", codes.model_dump_json(indent=1))
    return codes.shared_of
