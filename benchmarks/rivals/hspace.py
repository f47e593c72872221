"""Classifiers on h, the output of the UNet's middle block: one linear layer for each step, from few labels."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rivals.sampling import Edit, Model

DRAWS = 4  # of noise for each labelled image
FIT_STEPS, RATE, DECAY = 300, 1e-2, 1e-2
CALIBRATION_STEPS, CALIBRATION_RATE, BETA = 60, 2e-3, 1e-3
_BATCH = 128


@torch.no_grad()
def record(model: Model, latents: Tensor, context: Tensor, draws: int, seed: int) -> Tensor:
    """h [steps, N·draws, D] of latents [N,C,H,W] that are noised to the level of each step; draws of noise are rows
    of N images each.
    """
    generator = torch.Generator().manual_seed(seed)
    repeated = latents.repeat(draws, 1, 1, 1)
    found = []
    for index in range(model.table.num_steps):
        alpha, sigma = model.levels(index)
        noised = alpha * repeated + sigma * torch.randn(repeated.shape, generator=generator)
        parts: list[Tensor] = []
        for x in noised.split(_BATCH):
            model.denoiser(x, float(model.table.t[index]), context, keep(parts))
        found.append(torch.cat(parts).flatten(1))
    return torch.stack(found)


def keep(parts: list[Tensor]) -> Edit:
    """An edit that changes nothing and keeps h."""

    def edit(h: Tensor) -> Tensor:
        parts.append(h.detach().clone())
        return h

    return edit


@dataclass
class Heads:
    """Logits [B,K] at a step of h [B,...]: weight [steps,D,K], bias [steps,1,K]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, index: int, h: Tensor) -> Tensor:
        return h.flatten(1) @ self.weight[index] + self.bias[index]

    def every(self, h: Tensor) -> Tensor:
        """h [steps,N,D] -> logits [steps,N,K]."""
        return h @ self.weight + self.bias


def fit(h: Tensor, y: Tensor) -> Heads:
    """Logistic regression at each step, h [steps,N,D] and labels y [N]; the classes weigh alike."""
    classes = int(y.max()) + 1
    mean, deviation = h.mean(1, keepdim=True), h.std(1, keepdim=True) + 1e-3
    z = (h - mean) / deviation
    weight = torch.zeros(len(h), h.shape[2], classes, requires_grad=True)
    bias = torch.zeros(len(h), 1, classes, requires_grad=True)
    shares = 1 / torch.bincount(y, minlength=classes).float()
    optimizer = torch.optim.AdamW([weight, bias], RATE, weight_decay=DECAY)
    for _ in range(FIT_STEPS):
        logits = z @ weight + bias
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(h)), weight=shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        folded = weight / deviation.transpose(1, 2)
        return Heads(folded, bias - mean @ folded)


def smooth_ece(logits: Tensor, y: Tensor) -> Tensor:
    """Javid et al. (arXiv 2511.05844): 1/n Σ √((p̂ - a)² + β), p̂ the largest probability, a whether it is right.

    The sum over bins of the sums in them is the sum over all. logits [...,K], y [...].
    """
    confidence, said = logits.softmax(-1).max(-1)
    return ((confidence - (said == y).float()).square() + BETA).sqrt().mean()


def calibrate(heads: Heads, h: Tensor, y: Tensor) -> Heads:
    """Fine-tuned by the smooth calibration error and cross-entropy, on h [steps,N,D] that it wasn't fitted on."""
    weight, bias = (part.clone().requires_grad_() for part in (heads.weight, heads.bias))
    scale = torch.ones(len(h), 1, 1, requires_grad=True)
    labels = y.expand(len(h), -1)
    optimizer = torch.optim.Adam([scale, bias], CALIBRATION_RATE * 10)
    for _ in range(CALIBRATION_STEPS):
        logits = scale * (h @ weight) + bias
        loss = smooth_ece(logits, labels) + F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return Heads(weight * scale, bias.detach())


def expected_error(logits: Tensor, y: Tensor, bins: int = 10) -> float:
    """The expected calibration error of logits [...,K] for y [...], in bins of equal width."""
    confidence, said = (part.flatten().numpy() for part in logits.softmax(-1).max(-1))
    right = (said == y.flatten().numpy()).astype(float)
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [abs((confidence - right)[bin_of == k].sum()) for k in range(bins)]
    return float(sum(gaps) / len(right))
