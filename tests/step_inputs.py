"""Arguments of guided_step for the tests of its implementations."""

import numpy as np
import torch
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Inputs = tuple[list[Float32], Float32, Float32, Float32, Float32, NDArray[np.uint64], NDArray[np.int64]]


def inputs(shape: tuple[int, ...], branches: int, seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    outputs = [rng.standard_normal(shape, np.float32) for _ in range(branches)]
    scales = rng.uniform(0, 5, (shape[0], branches - 1)).astype(np.float32)
    rows = rng.standard_normal((shape[0], 9), np.float32)
    rows[:, 7], rows[:, 8] = -0.8, 0.9
    rows[::2, 7], rows[::2, 8] = -np.inf, np.inf
    x, x0_prev = (rng.standard_normal(shape, np.float32) for _ in range(2))
    seeds = rng.integers(0, 2**64 - 1, shape[0], np.uint64, endpoint=True)
    return outputs, scales, rows, x, x0_prev, seeds, rng.integers(0, 1000, shape[0])


def tensors(*arrays: NDArray) -> list[torch.Tensor]:
    return [torch.from_numpy(array.view(np.int64) if array.dtype == np.uint64 else array) for array in arrays]
