"""Inputs of the tiny preset's denoiser."""

import numpy as np
from numpy.typing import NDArray


def denoiser_call(
    seed: int, batch: int = 3, size: tuple[int, int] = (8, 8), tokens: int = 1
) -> dict[str, NDArray[np.float32]]:
    """Inputs of the tiny denoiser: scale 0 and timesteps from end to end among them."""
    rng = np.random.default_rng(seed)
    return {
        "x_t": rng.standard_normal((batch, 4, *size), np.float32),
        "t": np.linspace(999, 0, batch, dtype=np.float32),
        "text_tokens": rng.standard_normal((batch, tokens, 16), np.float32),
        "indicator_tokens": rng.standard_normal((batch, 4, 16), np.float32),
        "code_scale": np.linspace(0, 1.5, batch, dtype=np.float32),
    }
