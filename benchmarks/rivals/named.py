"""The group named in the prompt, by quota: what a user would do by hand, and the least that words can."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rivals.sampling import Denoiser, Output, Step, branches


def make(contexts: Sequence[Tensor], null: Tensor, scale: float) -> Output:
    """Guidance by `scale` on one of two conditions [1,T,D], in turn."""
    both = torch.cat(list(contexts))

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        apart, wanted = branches(denoiser, step, null, both[torch.from_numpy(step.quota())])
        return apart + scale * (wanted - apart)

    return output
