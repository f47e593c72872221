"""Trainers of students over a tiny run of pixels, without the images that it was trained on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddm_rt.config import RunConfig, parse_json
from ddm_rt.model.assemble import assemble
from ddm_rt.model.unet import DDM
from ddm_rt.runtime import Codes
from ddm_rt.train.distill.consistency import Distiller
from ddm_rt.train.distill.run import student_config
from ddm_rt.train.pixels import PixelStudent
from ddm_rt.train.trainee import Classes, Material

IMAGES = 20

D = TypeVar("D", bound=Distiller)


def distiller_of(kind: type[D], run: Path, fields: Mapping[str, Any] | None = None) -> D:
    """A trainer of this kind with dotted fields of the student's configuration, on random latents [20,C,H,W] whose
    codes take turns.
    """
    config = student_config(run, fields)
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run)
    model = assemble(run, parse_json(RunConfig, (run / "config.json").read_bytes(), run), codes)
    assert isinstance(model, DDM)
    shape = config.model.latent_shape(config.data)
    latents = torch.randn(IMAGES, *shape, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    classes = Classes(torch.arange(IMAGES) % codes.num_codes, codes.num_codes, codes.top_of)
    return kind(config, Material(latents, classes, lambda: PixelStudent(config, model)))
