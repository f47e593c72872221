"""Classifier guidance, calibrated and regularised by a divergence, after Javid et al. (arXiv 2511.05844)."""

import torch
from torch import Tensor

from rivals.hspace import Heads
from rivals.sampling import Denoiser, Output, Step

REGULARISATION = 1.0  # weight of the divergence


def divergence(p: Tensor, side: Tensor) -> Tensor:
    """Jensen-Shannon divergence [B] of probabilities p [B,K] from one-hot ones at side [B]."""
    wanted = torch.nn.functional.one_hot(side, p.shape[1]).to(p)
    middle = (p + wanted) / 2
    of_p = (p * (p.clamp(min=1e-12) / middle.clamp(min=1e-12)).log()).sum(1)
    return (of_p - middle.gather(1, side[:, None])[:, 0].log()) / 2


def objective(logits: Tensor, side: Tensor) -> Tensor:
    """log p(side) - λ·JS, [B], of logits [B,K]."""
    log_p = logits.log_softmax(1)
    return log_p.gather(1, side[:, None])[:, 0] - REGULARISATION * divergence(log_p.exp(), side)


def make(context: Tensor, heads: Heads, scale: float) -> Output:
    """ε - s·σ·∇ (Dhariwal and Nichol 2021, arXiv 2105.05233, alg. 2), which is x0 + s·σ²/α·∇ where x0 is predicted.

    The classifier reads h, so its gradient goes back through the first half of the UNet. Sides are handed out in turn.
    """

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        parts: list[Tensor] = []

        def read(h: Tensor) -> Tensor:
            parts.append(h)
            return h

        with torch.enable_grad():
            x = step.x.detach().requires_grad_()
            out = denoiser(x, step.t, context, read)
            side = torch.from_numpy(step.quota())
            (gradient,) = torch.autograd.grad(objective(heads(step.index, parts[0]), side).sum(), x)
        denoiser.backward += len(x)
        return out.detach() + scale * step.sigma**2 / step.alpha * gradient

    return output
