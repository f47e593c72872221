"""Balancing Act's distribution guidance (Parihar et al., CVPR 2024): h is moved until a batch's shares are even."""

import torch
from torch import Tensor

from rivals.hspace import Heads
from rivals.sampling import Denoiser, Output, Step

TEMPERATURE, BATCH = 8.0, 100


def distance(logits: Tensor) -> Tensor:
    """Σ_k (p̄_k - π_k)²/π_k of logits [B,K], p̄ the mean over the batch of their softmax at a temperature, π even."""
    shares = (logits / TEMPERATURE).softmax(1).mean(0)
    return ((shares - 1 / len(shares)).square() * len(shares)).sum()


def moved(h: Tensor, heads: Heads, index: int, strength: float) -> Tensor:
    """h - strength·∇ of the distance."""
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(distance(heads(index, leaf)), leaf)
    return h - strength * gradient


def make(context: Tensor, heads: Heads, strength: float) -> Output:
    def output(denoiser: Denoiser, step: Step) -> Tensor:
        denoiser.heads += len(step.x)
        return denoiser(step.x, step.t, context, lambda h: moved(h, heads, step.index, strength))

    return output
