"""APG (Sadat et al., arXiv 2410.02416): guidance whose difference is cut to a norm, and its parallel part left out."""

from torch import Tensor

from rivals.sampling import Denoiser, Output, Step, branches

NORM, ETA = 15.0, 0.0


def projected(apart: Tensor, wanted: Tensor, scale: float, eta: float = ETA) -> Tensor:
    """o_∅ + w·(Δ⊥ + η·Δ∥) with Δ = (o - o_∅)·min(1, 15/‖o - o_∅‖), parallel to o; all [B,C,H,W], by image."""
    axes = (1, 2, 3)
    difference = wanted - apart
    norm = difference.square().sum(axes, keepdim=True).sqrt()
    difference = difference * (NORM / norm.clamp(min=1e-12)).clamp(max=1)
    unit = wanted / wanted.square().sum(axes, keepdim=True).sqrt().clamp(min=1e-12)
    parallel = (difference * unit).sum(axes, keepdim=True) * unit
    return apart + scale * (difference - parallel + eta * parallel)


def make(context: Tensor, null: Tensor, scale: float) -> Output:
    def output(denoiser: Denoiser, step: Step) -> Tensor:
        return projected(*branches(denoiser, step, null, context), scale)

    return output
