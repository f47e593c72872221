"""Contrastive features for code discovery, from an encoder that is trained on the training images alone.

They are SimCLR's (arXiv 2002.05709, eq. 1). The encoder's body is read, before the projector: the
augmentations remove slant, stroke width and position, which otherwise dominate and are what clusters would follow.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ddm_rt.config import FeatureConfig
from ddm_rt.progress import OnFigures
from ddm_rt.train.codes.patches import patch_features
from ddm_rt.train.distributed import CPU
from ddm_rt.train.judge import block

COLOUR_JITTER = 0.6  # of the second set of contrastive features


class ContrastiveEncoder(nn.Module):
    """A small convolutional encoder [B,C,H,W] -> [B, 32·width], and SimCLR's projector behind it."""

    def __init__(self, channels: int, width: int, projection: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(channels, width, stride=2),
            block(width, 2 * width, stride=2),
            block(2 * width, 4 * width, stride=1),
            block(4 * width, 8 * width, stride=2),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.projector = nn.Sequential(
            nn.Linear(32 * width, 8 * width),
            nn.BatchNorm1d(8 * width),
            nn.ReLU(),
            nn.Linear(8 * width, projection),
        )

    def forward(self, images: Tensor) -> Tensor:
        """images [B,C,H,W] in [-1,1] -> unit vectors [B, projection]."""
        return F.normalize(self.projector(self.body(images)), dim=1)


def augment(images: Tensor, config: FeatureConfig, generator: torch.Generator) -> Tensor:
    """A random view of each image [B,C,H,W]: affine and elastic warp, stroke width, colour, flip.

    The views are made where the images are, from random numbers of a generator on the CPU.
    """
    count = len(images)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(images.device)

    def uniform(*shape: int) -> Tensor:
        return random(*shape) * 2 - 1

    angle = uniform(count) * math.radians(config.rotation)
    scale, shear = 1 + uniform(count) * config.scale, uniform(count) * config.shear
    aspect = 1 + uniform(count) * 0.15
    matrix = torch.zeros(count, 2, 3, device=images.device)
    matrix[:, 0, 0], matrix[:, 0, 1] = torch.cos(angle) * scale * aspect, -torch.sin(angle) * scale + shear
    matrix[:, 1, 0], matrix[:, 1, 1] = torch.sin(angle) * scale, torch.cos(angle) * scale / aspect
    matrix[:, :, 2] = uniform(count, 2) * config.translate * 2
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    bend = uniform(count, 2, 4, 4) * config.elastic  # a displacement at 4x4 points, interpolated
    bend = F.interpolate(bend, size=images.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    views = F.grid_sample(images, grid + bend, align_corners=False, padding_mode="border")
    if config.thickness:
        kind, amount = random(2, count, 1, 1, 1)
        wider = views + (F.max_pool2d(views, 3, 1, 1) - views) * amount
        thinner = views + (-F.max_pool2d(-views, 3, 1, 1) - views) * amount * 0.7
        views = torch.where(kind < 1 / 3, wider, torch.where(kind < 2 / 3, thinner, views))
    if config.colour:
        gain, offset = (
            1 + uniform(count, 1, 1, 1) * config.colour,
            uniform(count, images.shape[1], 1, 1) * config.colour,
        )
        views = (views * gain + offset).clamp(-1, 1)
    if config.flip:
        mirrored = random(count, 1, 1, 1) < 0.5
        views = torch.where(mirrored, views.flip(-1), views)
    return views


def contrastive_features(
    images: NDArray[np.float32],
    config: FeatureConfig,
    seed: int,
    progress: OnFigures | None = None,
    device: torch.device = CPU,
) -> NDArray[np.float32]:
    """Unit features [N, 32·width] of images [N,C,H,W] from an encoder trained on these images alone, on `device`."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.from_numpy(images)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ContrastiveEncoder(data.shape[1], config.width).to(device)
    optimizer = torch.optim.AdamW(encoder.parameters(), config.learning_rate, weight_decay=1e-4)
    size = min(config.batch_size, len(data))
    positives = torch.cat([torch.arange(size, 2 * size), torch.arange(size)]).to(device)
    for step in range(config.steps):
        warm, cosine = min(1.0, (step + 1) / 20), 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * warm * cosine
        batch = data[torch.randperm(len(data), generator=generator)[:size]].to(device)
        views = torch.cat([augment(batch, config, generator), augment(batch, config, generator)])
        z = encoder(views)  # [2B, P]
        similarity = z @ z.T / config.temperature
        similarity.fill_diagonal_(-torch.inf)
        loss = F.cross_entropy(similarity, positives)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if progress is not None:
            progress(step + 1, config.steps, {"loss": loss.item()})
    encoder.eval()
    with torch.inference_mode():
        parts = [F.normalize(encoder.body(chunk.to(device)), dim=1).cpu() for chunk in torch.split(data, 512)]
    return torch.cat(parts).numpy()


def feature_sets(
    images: NDArray[np.float32],
    config: FeatureConfig,
    seed: int,
    progress: OnFigures | None = None,
    device: torch.device = CPU,
    encoded: NDArray[np.float32] | None = None,
) -> dict[str, NDArray[np.float32]]:
    """Several feature sets [N,D] of images [N,C,H,W], by name: for whoever has labels to choose with.

    `encoded`, an encoder's, where there is one; contrastive ones as configured and, of coloured images, with colour
    jitter (which removes what is known by colour) or without it, the other way round than configured; patches; and all
    together.
    """
    found = {}
    if encoded is not None:
        found["encoder"] = encoded
    found["contrastive"] = contrastive_features(images, config, seed, progress, device)
    if images.shape[1] == 3:
        other = config.model_copy(update={"colour": 0.0 if config.colour else COLOUR_JITTER})
        name = "contrastive, without colour jitter" if config.colour else "contrastive, with colour jitter"
        found[name] = contrastive_features(images, other, seed, progress, device)
    found["patches"] = patch_features(images, seed)
    return found | {"all together": together(found)}


def together(found: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """Feature sets side by side [N, sum of D], each of the same total variance."""
    parts = []
    for features in found.values():
        centred = features - features.mean(axis=0)
        parts.append(centred / max(float(np.sqrt((centred**2).sum(axis=1).mean())), 1e-12))
    return np.concatenate(parts, axis=1).astype(np.float32)
