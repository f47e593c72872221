"""FairImagen: fair PCA in the conditioner. Tokens lose the group's direction and get some of it by chance."""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddm_rt.sample.loop.noise import normal
from rivals.sampling import CONDITION, Denoiser, Output, Step, branches

KEPT = 600 / 768  # of the dimensions
SCALE = 0.6  # of the noise, squared as in the code that was read


@dataclass(frozen=True)
class FairMap:
    """UUᵀ [D,D], the group's unit direction n [D], and where real prompts of each group lie on it, [N] each."""

    keep: Tensor
    direction: Tensor
    lie: tuple[Tensor, ...]


def fit(embeddings: NDArray[np.float64], group: NDArray[np.int64]) -> FairMap:
    """Of prompts' embeddings [N,D] that name group 0 or 1 [N].

    n = zᵀX/‖zᵀX‖ with z the centred group; U are the first principal directions within the null space of zᵀX.
    """
    z = group - group.mean()
    line = (z @ embeddings)[None]
    rest = scipy.linalg.null_space(line)  # [D, D - 1]
    inside = embeddings @ rest
    _, vectors = np.linalg.eigh(inside.T @ inside)
    dims = min(round(KEPT * embeddings.shape[1]), rest.shape[1])
    basis = rest @ vectors[:, ::-1][:, :dims]
    direction = line[0] / np.linalg.norm(line)
    lie = tuple(torch.from_numpy(embeddings[group == k] @ direction).float() for k in (0, 1))
    return FairMap(torch.from_numpy(basis @ basis.T).float(), torch.from_numpy(direction).float(), lie)


def make(context: Tensor, found: FairMap, null: Tensor, scale: float) -> Output:
    """Guidance by `scale` on UUᵀx + ξ·n of each token of the condition [1,T,D]; ξ by chance for each image."""
    kept = context @ found.keep

    def output(denoiser: Denoiser, step: Step) -> Tensor:
        noise = drawn(found, step) * SCALE**2
        apart, wanted = branches(denoiser, step, null, kept + noise[:, None, None] * found.direction)
        return apart + scale * (wanted - apart)

    return output


def drawn(found: FairMap, step: Step) -> Tensor:
    """For each image [B] where a prompt of a group lies, both by chance: "empirical noise"."""
    side = step.coin()
    which = (np.abs(normal(step.seeds, 0, CONDITION, (1,))[:, 0]) * 1e4).astype(np.int64)
    return torch.stack([found.lie[k][i % len(found.lie[k])] for k, i in zip(side, which, strict=True)])
