"""The judge: a small classifier over all classes of a labelled image set; it measures and steers nothing.

It must be trained on images that no generator sees; `confusion` on a third, held-out part is what its
verdicts are corrected with.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ddm_rt.errors import DdmError

FEATURE_DIM = 64
BATCH_SIZE = 64
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 1e-2


class Judge(nn.Module):
    """image float32 [B,C,H,W] in [-1, 1] -> (logits [B,K], features [B,64]); any H, W of at least 8.

    The features are taken before the last nonlinearity: closer to the Gaussian that a Frechet distance
    assumes.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            block(channels, 24, stride=2),
            block(24, 32, stride=1),
            block(32, 64, stride=2),
            block(64, 64, stride=1),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.neck = nn.Linear(64 * 2 * 2, FEATURE_DIM)
        self.head = nn.Linear(FEATURE_DIM, num_classes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.neck(self.body(image))  # [B, 64]
        return self.head(F.relu(features)), features


def fit(
    images: NDArray[np.float32],
    labels: NDArray[np.int64],
    *,
    seed: int,
    steps: int,
    threads: int = 1,
    progress: Callable[[int, float], None] | None = None,
) -> Judge:
    """Train a judge; its weights depend on the arguments alone (for one torch version and machine kind).

    Args:
        images: float32 [N,C,H,W] in [-1, 1].
        labels: int64 [N], 0..K-1, every class present.
        progress: called after each step with (steps done, loss).

    Returns:
        The judge on the CPU, in eval mode, without gradients.

    Raises:
        DdmError: wrong shapes, dtypes or ranges, a class without images, or steps below 1.
    """
    num_classes = _check(images, labels)
    if steps < 1:
        raise DdmError(f"steps is {steps}; expected at least 1")
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    generator = torch.Generator().manual_seed(seed)
    with _threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the layers' initial weights only; the fork puts the caller's state back
        judge = Judge(images.shape[1], num_classes).train()
        optimizer = torch.optim.AdamW(judge.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for i in range(steps):
            index = torch.randint(len(x), (BATCH_SIZE,), generator=generator)
            logits, _ = judge(augment(x[index], generator))
            loss = F.cross_entropy(logits, y[index])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            if progress is not None:
                progress(i + 1, loss.item())
    return judge.eval().requires_grad_(False)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Light random rotation, scale, shift, contrast and noise of [B,C,H,W]; no flips: they change digits."""
    batch = len(x)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((batch, *shape), generator=generator)

    angle, scale = uniform(-0.2, 0.2), uniform(0.9, 1.12)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(batch, 2, 2)
    theta = torch.cat([turn * scale.view(-1, 1, 1), uniform(-0.12, 0.12, 2, 1)], dim=2)  # [B, 2, 3]
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    noise = 0.05 * torch.randn(x.shape, generator=generator)
    return x * uniform(0.8, 1.0, 1, 1, 1) + noise


@torch.inference_mode()
def confusion(judge: Judge, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Counts [K,K] on held-out images: row = truth, column = verdict. Raises DdmError as `fit` does."""
    num_classes = judge.head.out_features
    _check(images, labels, num_classes)
    batches = torch.split(torch.from_numpy(images), 256)
    verdicts = torch.cat([judge(batch)[0].argmax(1) for batch in batches]).numpy()
    counts = np.zeros((num_classes, num_classes), dtype=np.int64)
    np.add.at(counts, (labels, verdicts), 1)
    return counts


def block(channels: int, width: int, *, stride: int) -> nn.Sequential:
    """[B, channels, H, W] -> [B, width, H/stride, W/stride]."""
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check(images: NDArray[np.float32], labels: NDArray[np.int64], num_classes: int | None = None) -> int:
    """The number of classes."""
    if images.ndim != 4 or images.dtype != np.float32 or len(images) == 0 or min(images.shape[2:]) < 8:
        raise DdmError(f"images: {images.dtype} {list(images.shape)}; expected float32 [N,C,H,W], H and W at least 8")
    if not np.abs(images).max() <= 1:
        raise DdmError("images: values outside [-1, 1] or not finite")
    if labels.shape != (len(images),) or labels.dtype != np.int64 or labels.min() < 0:
        raise DdmError(f"labels: {labels.dtype} {list(labels.shape)}; expected int64 [{len(images)}], 0 or more")
    present = np.bincount(labels, minlength=num_classes or 2)
    if len(present) > (num_classes or len(present)) or not present.all():
        raise DdmError(
            f"labels: images per class are {present.tolist()}; expected at least one for each of "
            f"{num_classes or '2 or more'} classes"
        )
    return len(present)
