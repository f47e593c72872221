"""Weak guidance after Kim et al. (arXiv 2408.12692): a direction of the group, added where a prompt has ended."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rivals.sampling import Denoiser, Output, Step, branches

STRENGTH = 1.0


def directions(named: Sequence[Tensor], neutral: Tensor) -> Tensor:
    """Mean e(group) - mean e(neutral) [K,D], of end-of-prompt embeddings [N,D] of each group and of no group."""
    return torch.stack([part.mean(0) for part in named]) - neutral.mean(0)


def added(context: Tensor, end: int, direction: Tensor, strength: float = STRENGTH) -> Tensor:
    """context [1,T,D] with a direction [B,D] on the tokens from `end` on -> [B,T,D]."""
    found = context.repeat(len(direction), 1, 1)
    found[:, end:] += strength * direction[:, None]
    return found


def make(context: Tensor, end: int, found: Tensor, null: Tensor, scale: float) -> Output:
    """Guidance by `scale` on the changed condition; groups are handed out in turn."""

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        changed = added(context, end, found[torch.from_numpy(step.quota())])
        apart, wanted = branches(denoiser, step, null, changed)
        return apart + scale * (wanted - apart)

    return output
