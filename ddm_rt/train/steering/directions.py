"""From responses of images to what steers: directions of what sets codes apart, and where along them a code is."""

from typing import NamedTuple

import torch
from torch import Tensor

from ddm_rt.runtime import SharedOf

_SMALLEST = 1e-5  # of the longest direction: what is shorter is rounding


class Directions(NamedTuple):
    """Of one place: an orthonormal basis [R,W] of what sets codes apart, and of each code v [K,W] in its span."""

    basis: Tensor
    vectors: Tensor


def directions(responses: Tensor, code: Tensor, shared_of: SharedOf, strength: float) -> Directions:
    """Directions of responses [N,W] of images whose codes are `code` int64 [N].

    What counts is not the code but what it shares with others (`CodeTable.shared_of`): its top code, or its values of
    crossing factors. The direction of a top code is the mean response of its images less m, the mean over top codes of
    such means; of a value, within its factor. m counts top codes alike, since the data's own mean lies where most
    images are. The basis is Gram-Schmidt's of all directions, as in EquiSteer (ECCV 2026). A code's v is P m and
    `strength` times its directions. With a strength of 1 and no crossing factors it is what P leaves of the mean
    response of its images: EquiSteer's α·s, where there are two.
    """
    rows = 1 + max(map(max, shared_of))
    has = torch.zeros(len(shared_of), rows, dtype=torch.float64)
    for k, shared in enumerate(shared_of):
        has[k, list(shared)] = 1
    of_image = has[code]  # [N, rows]
    means = (of_image.T @ responses.double()) / of_image.sum(0)[:, None]  # [rows, W]
    centres = torch.zeros_like(means)
    for factor in zip(*shared_of, strict=True):
        own = sorted(set(factor))
        centres[own] = means[own].mean(0)
    apart = means - centres
    basis = orthonormal(apart)
    centre = torch.stack([centres[rows[0]] for rows in zip(*shared_of, strict=True)]).mean(0)
    vectors = (centre + strength * has @ apart) @ basis.T @ basis
    return Directions(basis.float(), vectors.float())


def orthonormal(rows: Tensor) -> Tensor:
    """Gram-Schmidt of rows [N,W]: an orthonormal basis [R,W] of their span, R <= N."""
    found: list[Tensor] = []
    longest = float(rows.norm(dim=1).max())
    for row in rows:
        for _ in range(2):  # once more, for what rounding left
            for unit in found:
                row = row - (row @ unit) * unit
        if float(row.norm()) > _SMALLEST * longest:
            found.append(row / row.norm())
    return torch.stack(found) if found else rows[:0]
