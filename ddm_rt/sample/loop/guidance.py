"""Guidance: which branches of the denoiser an image needs, and the scale of each.

With ε_∅∅ the null (or negative) text and the null code, ε_t∅ the text alone and ε_tc text and code:

    separate:           ε = ε_∅∅ + g_t·(ε_t∅ - ε_∅∅) + g_c·(ε_tc - ε_t∅)
    joint (g_t = g_c):  ε = ε_∅∅ + g·(ε_tc - ε_∅∅)
    without prompts:    ε = ε_∅ + g_c·(ε_c - ε_∅)

The null branch is that of classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, eq. 6).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.config import NULL_CODE
from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.annealing import NoiseAt


class Condition(NamedTuple):
    """What one branch is conditioned on. Text None: none at all, zeros in its place."""

    text: str | None
    code: int
    noise: NoiseAt | None = None  # on the text's tokens


class Branches(NamedTuple):
    """Branches from the least conditioned on, and the scales of the differences between neighbours, one fewer."""

    conditions: tuple[Condition, ...]
    scales: tuple[float, ...]


class TokenNoise(NamedTuple):
    """CADS of one image: noise on the tokens of each condition but the null one, from which guidance starts."""

    scale: float
    null: Condition


def branches(wanted: Condition, null_text: str | None, text_scale: float | None, code_scale: float) -> Branches:
    """The fewest branches that give the sum above for one image. `text_scale` None: the bundle takes no prompts.

    A step between equal conditions adds nothing, nor does a last one of scale 0; a first one of scale 1 replaces what
    it starts from; two steps of one scale are one step.
    """
    conditions = [Condition(null_text, NULL_CODE)]
    scales: list[float] = []
    steps = [(wanted, code_scale)]
    if text_scale is not None:
        steps.insert(0, (Condition(wanted.text, NULL_CODE), text_scale))
    for condition, scale in steps:
        if condition == conditions[-1]:
            continue
        if scales and scales[-1] == scale:
            conditions[-1] = condition
        else:
            conditions.append(condition)
            scales.append(scale)
    while scales and scales[-1] == 0:
        conditions.pop()
        scales.pop()
    if scales and scales[0] == 1:
        conditions.pop(0)
        scales.pop(0)
    return Branches(tuple(conditions), tuple(scales))


def guided_steps(num_steps: int, interval: tuple[float, float] | None) -> NDArray[np.bool_]:
    """Which steps have guidance, [num_steps]: all, or those of an interval of fractions of the steps, (start, stop).

    Step i is in it where int(start·num_steps) <= i < int(stop·num_steps), as in diffusers' guiders. Kynkäänniemi et al.
    2024 (arXiv 2404.07724) name the interval by noise levels. Raises DdmError for one that isn't an interval within 0
    and 1, and where no step is in it.
    """
    steps = np.arange(num_steps)
    if interval is None:
        return np.ones(num_steps, np.bool_)
    start, stop = interval
    if not 0 <= start < stop <= 1:
        raise DdmError(f"guidance_interval is {interval}; expected a start below a stop, both within 0 and 1")
    guided: NDArray[np.bool_] = (int(start * num_steps) <= steps) & (steps < int(stop * num_steps))
    if not guided.any():
        raise DdmError(f"guidance_interval is {interval}; none of the {num_steps} steps is in it")
    return guided
