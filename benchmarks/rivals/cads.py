"""CADS (Sadat et al., arXiv 2310.17347): the condition is noise first and itself last."""

import numpy as np
import torch
from torch import Tensor

from ddm_rt.sample.loop.noise import normal
from rivals.sampling import CONDITION, Denoiser, Output, Step, branches

TAU1, TAU2, SCALE = 0.6, 0.9, 0.25


def annealing(t: float) -> float:
    """γ of a time from 1 (noise) to 0: 0 from τ2 on, 1 up to τ1, a line between them."""
    return float(np.clip((TAU2 - t) / (TAU2 - TAU1), 0, 1))


def annealed(context: Tensor, gamma: float, noise: Tensor) -> Tensor:
    """√γ·y + s·√(1 - γ)·n, with the mean and deviation of y; context [B,T,D] and noise alike."""
    noisy = gamma**0.5 * context + SCALE * (1 - gamma) ** 0.5 * noise
    axes = (1, 2)
    mean, deviation = context.mean(axes, keepdim=True), context.std(axes, keepdim=True)
    return (noisy - noisy.mean(axes, keepdim=True)) / noisy.std(axes, keepdim=True) * deviation + mean


def make(context: Tensor, null: Tensor, scale: float) -> Output:
    """Guidance by `scale`, of which both conditions [1,T,D] are annealed, as in the code that was read."""

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        pair = [y.expand(len(step.x), -1, -1) for y in (null, context)]
        gamma = annealing(1 - step.index / step.count)
        if gamma < 1:
            noise = torch.from_numpy(normal(step.seeds, step.index, CONDITION, (2, *context.shape[1:])))
            pair = [annealed(y, gamma, noise[:, k]) for k, y in enumerate(pair)]
        apart, wanted = branches(denoiser, step, *pair)
        return apart + scale * (wanted - apart)

    return output
