"""SelfDebias (WACV 2026): modes of the model's own images in h, and a gradient on h that makes a batch even over them.

Label-free. Its code for unconditional models was read, and is followed here.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import SpectralClustering
from sklearn.metrics import silhouette_score
from torch import Tensor, nn
from torch.nn import functional as F

from rivals.hspace import keep
from rivals.sampling import Denoiser, Model, Output, Step

TEMPERATURE, BATCH = 8.0, 32
LATEST = 900  # timesteps above are left alone
MODES = range(2, 9)
IMAGES, FEATURE_STEPS = 256, 250  # images that modes are found in, steps of learning their features
EPOCHS, PROJECTION_BATCH, RATE, HIDDEN, TIME, SIMILARITY = 10, 512, 1e-3, 256, 32, 0.1


class Projection(nn.Module):
    """h [B,D] of step i [B] -> a unit vector in the space of an image encoder [B,E]."""

    def __init__(self, steps: int, h: int, out: int) -> None:
        super().__init__()
        self.time = nn.Embedding(steps, TIME)
        self.layers = nn.Sequential(nn.Linear(h + TIME, HIDDEN), nn.ReLU(), nn.Dropout(0.2), nn.Linear(HIDDEN, out))

    def forward(self, h: Tensor, index: Tensor) -> Tensor:
        return F.normalize(self.layers(torch.cat([h.flatten(1), self.time(index)], 1)), dim=1)


@dataclass
class Modes:
    """What guides: the projection, and the centroids [K,E] of the modes at each step."""

    projection: Projection
    centroids: list[Tensor]


def shares(z: Tensor, centroids: Tensor) -> Tensor:
    """p̄ [K]: the mean over the batch of softmax(cos(z, c)/8), of z [B,E]."""
    similarity = z @ F.normalize(centroids, dim=1).T
    return (similarity / TEMPERATURE).softmax(1).mean(0)


def distance(p: Tensor) -> Tensor:
    """KL(p̄ ‖ even)."""
    return (p * (p * len(p)).log()).sum()


def moved(h: Tensor, modes: Modes, index: int, strength: float) -> Tensor:
    """h - strength·∇ KL."""
    with torch.enable_grad():
        leaf = h.detach().requires_grad_()
        z = modes.projection(leaf, torch.full((len(h),), index))
        (gradient,) = torch.autograd.grad(distance(shares(z, modes.centroids[index])), leaf)
    return h - strength * gradient


def make(context: Tensor, modes: Modes, strength: float) -> Output:
    def output(denoiser: Denoiser, step: Step) -> Tensor:
        if step.t > LATEST:
            return denoiser(step.x, step.t, context)
        denoiser.heads += len(step.x)
        return denoiser(step.x, step.t, context, lambda h: moved(h, modes, step.index, strength))

    return output


def trajectories(
    model: Model, context: Tensor, seeds: NDArray[np.uint64], batch: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Images uint8 [N,H,W,3] of the model as it is, and their h [steps,N,D] on the way."""
    images, found = [], []
    for start in range(0, len(seeds), batch):
        parts: list[Tensor] = []

        def output(denoiser: Denoiser, step: Step, parts: list[Tensor] = parts) -> Tensor:
            return denoiser(step.x, step.t, context, keep(parts))

        part = seeds[start : start + batch]
        images.append(model.images(output, part, np.arange(len(part))))
        found.append(torch.stack(parts).flatten(2))
    return np.concatenate(images), torch.cat(found, 1)


def project(h: Tensor, features: Tensor, seed: int) -> Projection:
    """A projection of h [steps,N,D] to features [N,E] of the finished images, by the contrast of a batch (NT-Xent)."""
    steps, count, width = h.shape
    torch.manual_seed(seed)
    projection = Projection(steps, width, features.shape[1])
    optimizer = torch.optim.Adam(projection.parameters(), RATE)
    generator = torch.Generator().manual_seed(seed)
    wanted = F.normalize(features, dim=1)
    for _ in range(EPOCHS):
        for chunk in torch.randperm(steps * count, generator=generator).split(PROJECTION_BATCH):
            index, image = chunk // count, chunk % count
            similarity = projection(h[index, image], index) @ wanted[image].T / SIMILARITY
            # The same image at another step is no other image.
            same = (image[:, None] == image) & ~torch.eye(len(chunk), dtype=torch.bool)
            similarity = similarity.masked_fill(same, -torch.inf)
            right = torch.arange(len(chunk))
            loss = (F.cross_entropy(similarity, right) + F.cross_entropy(similarity.T, right)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return projection.eval().requires_grad_(False)


def find(h: Tensor, projection: Projection, seed: int) -> tuple[Modes, NDArray[np.int64]]:
    """Modes of h [steps,N,D], as many as the silhouette at the last step likes best; and each image's there [N]."""
    every = [projection(part, torch.full((len(part),), index)) for index, part in enumerate(h)]
    last = every[-1].numpy()
    trials = {count: cluster(last, count, seed) for count in MODES}
    best = max(MODES, key=lambda count: silhouette_score(last, trials[count]))
    centroids: list[Tensor] = []
    for z in every:
        labels = torch.from_numpy(cluster(z.numpy(), best, seed).astype(np.int64))
        found = F.normalize(torch.stack([z[labels == k].mean(0) for k in range(best)]), dim=1)
        if centroids:  # the modes keep their numbers from step to step
            found = found[(centroids[-1] @ found.T).argmax(1)]
        centroids.append(found)
    return Modes(projection, centroids), trials[best].astype(np.int64)


def cluster(z: NDArray[np.float32], count: int, seed: int) -> NDArray[np.int32]:
    found: NDArray[np.int32] = SpectralClustering(
        count, affinity="nearest_neighbors", assign_labels="kmeans", random_state=seed
    ).fit_predict(z)
    return found
