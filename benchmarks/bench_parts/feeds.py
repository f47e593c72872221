"""Inputs of one denoiser call, the same in every process: drawn from the bundle's own description."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from subjects import Subject

from ddm_rt.bundle import Bundle

TOKENS = 77  # of a prompt


def feeds(subject: Subject, batch: int, side: int | None = None) -> dict[str, NDArray[Any]]:
    """x_t [B,C,H,W], t [B] and `cond`; `side` is that of the latents, None the bundle's own."""
    config = Bundle.load(subject.bundle, verify=False).config
    rng = np.random.default_rng(0)
    channels, height, width = config.latent_shape
    shape = (batch, channels, side or height, side or width)
    given: dict[str, NDArray[Any]] = {
        "x_t": rng.standard_normal(shape, np.float32),
        "t": np.linspace(900, 100, batch, dtype=np.float32),
    }
    tokens = 1 if config.prompt_free else TOKENS
    for spec in config.cond:
        size = (batch, *(tokens if isinstance(axis, str) else axis for axis in spec.shape))
        given[spec.name] = rng.standard_normal(size).astype(spec.dtype)
    if "code_scale" in given:
        given["code_scale"] = np.ones(batch, np.float32)
    return given
