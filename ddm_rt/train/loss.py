"""The DDM objective (arXiv 2503.12536): L = (1 - α)·MSE(ε̂, ε) + α·CE(C(ε̂), y)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def ddm_loss(
    prediction: Tensor,
    target: Tensor,
    logits: Tensor | None,
    y: Tensor | None,
    weight: float,
    known: float | None = None,
) -> Tensor:
    """prediction, target [B,C,H,W]; logits [B,K] of the head on the prediction; y int64 [B]; weight α.

    Samples with y = -1 (their code was dropped) take no part in the cross-entropy, which is the mean over the others;
    `known` takes the place of their number where these B are a part of a step. Without logits it is the MSE alone.
    """
    mse = F.mse_loss(prediction, target)
    if logits is None or y is None:
        return mse
    entropy = F.cross_entropy(logits, y, ignore_index=-1, reduction="sum")
    # Where none is known the sum is zero, whatever it is divided by.
    entropy = entropy / ((y >= 0).sum().clamp(min=1) if known is None else known or 1.0)
    return (1 - weight) * mse + weight * entropy


def training_target(prediction_type: str, x0: Tensor, noise: Tensor, alphas_cumprod: Tensor) -> tuple[Tensor, Tensor]:
    """(x_t, target) for x0, noise [B,C,H,W] and ᾱ_t [B]: DDPM's eq. 4 (arXiv 2006.11239); v as in arXiv 2202.00512."""
    signal = alphas_cumprod.sqrt().view(-1, 1, 1, 1)
    sigma = (1 - alphas_cumprod).sqrt().view(-1, 1, 1, 1)
    x_t = signal * x0 + sigma * noise
    targets = {"epsilon": noise, "sample": x0, "v_prediction": signal * noise - sigma * x0}
    return x_t, targets[prediction_type]


def dropped(count: int, both: float, code: float, text: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Which of `count` samples lose their code and which their text, bool [B] each: one draw decides."""
    u = torch.rand(count, generator=generator)
    return u < both + code, (u < both) | ((u >= both + code) & (u < both + code + text))
