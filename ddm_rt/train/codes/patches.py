"""Features from k-means on small patches: cheap, without training a network, and free of invariances.

A. Coates, H. Lee, A. Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning" (AISTATS 2011):
patches are normalised and ZCA-whitened, k-means gives a dictionary, each patch of an image is encoded by how much
nearer than average it is to each entry ("triangle"), and codes are averaged over a grid of regions. What contrastive
features lose, because augmentations change it, these still hold.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor
from torch.nn import functional as F

SIDE, PATCH, REGIONS = 32, 6, 4  # images are shrunk to this side
ENTRIES, SAMPLES = 100, 20_000
_NORMALISE, _WHITEN = 0.04, 0.1  # added to variances; pixels are in [-1, 1]
_BLOCK = 64  # images at a time


def patch_features(images: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Features [N, 16·ENTRIES] of images float32 [N,C,H,W] in [-1,1], H and W at least 8."""
    data = torch.from_numpy(images)
    if min(data.shape[2:]) > SIDE:
        data = F.interpolate(data, size=(SIDE, SIDE), mode="area")
    rng = np.random.default_rng(seed)
    sample = _sample(data, rng)
    mean = sample.mean(dim=0)
    values, vectors = torch.linalg.eigh(torch.cov((sample - mean).T))
    whiten = vectors @ torch.diag((values.clamp(min=0) + _WHITEN).rsqrt()) @ vectors.T
    whitened = ((sample - mean) @ whiten).numpy()
    entries = min(ENTRIES, len(whitened) // 2)
    kmeans = MiniBatchKMeans(entries, n_init=1, batch_size=2000, random_state=seed).fit(whitened)
    dictionary = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32))
    parts = [_encode(chunk, mean, whiten, dictionary) for chunk in torch.split(data, _BLOCK)]
    return torch.cat(parts).numpy()


def _sample(data: Tensor, rng: np.random.Generator) -> Tensor:
    """Normalised patches [at most SAMPLES, C·36] from random places of random images."""
    each = max(1, -(-SAMPLES // len(data)))
    found = []
    for start in range(0, len(data), _BLOCK):
        patches = _patches(data[start : start + _BLOCK])  # [B, P, D]
        places = torch.from_numpy(rng.integers(0, patches.shape[1], (len(patches), each)))
        found.append(patches[torch.arange(len(patches))[:, None], places].flatten(0, 1))
    return torch.cat(found)[torch.from_numpy(rng.permutation(each * len(data))[:SAMPLES])]


def _patches(images: Tensor) -> Tensor:
    """Every patch of [B,C,H,W], its mean removed and its contrast normalised: [B, places, C·36]."""
    patches = F.unfold(images, PATCH).transpose(1, 2)
    patches = patches - patches.mean(dim=2, keepdim=True)
    return patches * (patches.var(dim=2, keepdim=True) + _NORMALISE).rsqrt()


def _encode(images: Tensor, mean: Tensor, whiten: Tensor, dictionary: Tensor) -> Tensor:
    """[B, 16·entries]: triangle codes, averaged over each region."""
    distance = torch.cdist((_patches(images) - mean) @ whiten, dictionary)  # [B, places, entries]
    code = (distance.mean(dim=2, keepdim=True) - distance).clamp(min=0)
    rows, columns = images.shape[2] - PATCH + 1, images.shape[3] - PATCH + 1
    grid = code.transpose(1, 2).reshape(len(images), -1, rows, columns)
    return F.adaptive_avg_pool2d(grid, REGIONS).flatten(1)
