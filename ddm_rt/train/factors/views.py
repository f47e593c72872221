"""Several ways to look at the same images, so that a split which shows in many of them can be told from one that
a single set of features made up.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from ddm_rt.config import FeatureConfig
from ddm_rt.progress import OnFigures
from ddm_rt.train.codes.contrastive import contrastive_features
from ddm_rt.train.codes.patches import patch_features
from ddm_rt.train.distributed import CPU

Features = NDArray[np.float32]  # [N, D]
Images = NDArray[np.float32]  # [N, C, H, W] in [-1, 1]

SIDE, CELLS, ORIENTATIONS, COMPONENTS = 32, 4, 8, 16
OUTLINE_CELLS, BACKGROUND = 16, 0.15  # how far a pixel of the object is from the border's median, in [-1, 1]


def views(
    images: Images,
    config: FeatureConfig,
    seed: int,
    encoded: Callable[[], Features] | None = None,
    progress: OnFigures | None = None,
    device: torch.device = CPU,
) -> dict[str, Features]:
    """Features [N,D] of images by the name of the view. `encoded`, an encoder's, comes first where there is one."""
    found = {} if encoded is None else {"encoder": encoded()}
    small = _small(images)
    found["gradients"] = gradients(small)
    found["outline"] = outline(small)
    found["patches"] = patch_features(images, seed)
    found["pixels"] = principal(small.reshape(len(small), -1))
    found["contrastive"] = contrastive_features(images, config, seed, progress, device)
    return found


def gradients(images: Images) -> Features:
    """Histograms of edge orientations in a grid of cells, their principal components [N, COMPONENTS].

    N. Dalal, B. Triggs, "Histograms of Oriented Gradients for Human Detection" (CVPR 2005), with one block.
    """
    grey = torch.from_numpy(images).mean(dim=1, keepdim=True)
    blurred = F.avg_pool2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), 3, 1)
    padded = F.pad(blurred, (1, 1, 1, 1), mode="replicate")
    dx = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) / 2
    dy = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) / 2
    angle = torch.remainder(torch.atan2(dy, dx), torch.pi) / torch.pi * ORIENTATIONS
    away = (angle - torch.arange(ORIENTATIONS).view(1, -1, 1, 1)).abs()
    weight = (1 - torch.minimum(away, ORIENTATIONS - away)).clamp(min=0) * torch.hypot(dx, dy)
    histogram = F.adaptive_avg_pool2d(weight, CELLS).flatten(1)
    return principal(F.normalize(histogram, dim=1).sqrt().numpy())


def outline(images: Images) -> Features:
    """Where an image differs from the colour of its border: the shape of what lies on an even background."""
    data = torch.from_numpy(images)
    border = torch.cat([data[:, :, 0], data[:, :, -1], data[:, :, :, 0], data[:, :, :, -1]], dim=2)
    apart = (data - border.median(dim=2).values[:, :, None, None]).abs().amax(dim=1, keepdim=True)
    shape = F.adaptive_avg_pool2d((apart > BACKGROUND).float(), min(OUTLINE_CELLS, apart.shape[2])).flatten(1)
    return F.normalize(shape, dim=1).numpy()


def principal(features: Features) -> Features:
    """The first principal components [N, COMPONENTS] of rows of length 1."""
    rows = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    left, values, _ = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    found: Features = (left[:, :COMPONENTS] * values[:COMPONENTS]).astype(np.float32)
    return found


def _small(images: Images) -> Images:
    data = torch.from_numpy(images)
    return images if min(data.shape[2:]) <= SIDE else F.interpolate(data, size=(SIDE, SIDE), mode="area").numpy()
