"""CADS: noise on the prompt's tokens that fades while an image is made (Sadat et al. 2023, arXiv 2310.17347).

With t the training timestep as a share of all of them, 1 at pure noise, and n standard normal (section 3.2 and eq. 4):

    γ(t) = 1 for t <= τ1, 0 for t >= τ2, (τ2 - t)/(τ2 - τ1) between them
    ŷ    = √γ·y + s·√(1 - γ)·n
    y'   = (ŷ - mean ŷ)/std ŷ·std y + mean y

It makes the images of one prompt differ more. n is a function of the image's seed and of the step, and means are over
the tokens of one prompt, so an image doesn't see its neighbours. The code's tokens get no noise: it would undo balance.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.noise import Stream, normal

Tokens = NDArray[np.float32]  # [1, T, D]


class NoiseAt(NamedTuple):
    """The noise of one image at one step."""

    seed: int
    step: int
    scale: float
    kept: float  # γ, below 1


def kept_tokens(t: NDArray[np.float64], times: tuple[float, float] | None) -> NDArray[np.float64]:
    """γ at timesteps given as shares of all of them, for times (τ1, τ2). Without times: 1.

    Raises DdmError for times that aren't two ascending ones within 0 and 1.
    """
    if times is None:
        return np.ones_like(t)
    end, begin = times
    if not 0 <= end < begin <= 1:
        raise DdmError(f"cads: noise ends at {end} and begins at {begin}; expected an end below, both within 0 and 1")
    return np.clip((begin - t) / (begin - end), 0.0, 1.0)


def noised(tokens: Tokens, noise: NoiseAt) -> Tokens:
    """y' of one prompt's tokens float32 [1,T,D]. Tokens that are all alike stay as they are where γ is 0 and s is."""
    n = normal(np.array([noise.seed], np.uint64), noise.step, Stream.TOKENS, tokens.shape[1:])
    mixed = np.float32(math.sqrt(noise.kept)) * tokens + np.float32(noise.scale * math.sqrt(1 - noise.kept)) * n
    (mean, deviation), (given_mean, given_deviation) = _moments(mixed), _moments(tokens)
    if deviation == 0:
        return tokens
    gain = np.float32(given_deviation / deviation)
    made: Tokens = (mixed - np.float32(mean)) * gain + np.float32(given_mean)
    return made


def _moments(values: Tokens) -> tuple[float, float]:
    """Mean and standard deviation (of a sample, n - 1), in float64."""
    wide = values.astype(np.float64)
    return float(wide.mean()), float(wide.std(ddof=1)) if wide.size > 1 else 0.0
