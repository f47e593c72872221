"""`ddm_rt.kernels.philox.normal` for torch tensors, on the device that they are on.

Written over tensors' methods, so that the step's reference, which calls it, imports no torch.
"""

import math
from typing import Any

import numpy as np

from ddm_rt.kernels import philox

Tensor = Any  # torch.Tensor


def normal_like(x: Tensor, seeds: Tensor, rows: Tensor, stream: int) -> Tensor:
    """Standard normal noise like x (float32 [B, ...]) for seeds int64 [B] (bit patterns of unsigned ones) and rows [B].

    On the CPU these are numpy's bits, from numpy: torch's own logarithm may treat the end of an array apart, which
    would let an image see its batch. Elsewhere each number is computed alone, and nothing waits for the host.
    """
    if x.device.type == "cpu":
        words = seeds.numpy().view(np.uint64)
        return x.new_tensor(philox.normal(words, rows.numpy(), stream, tuple(x.shape[1:])))
    return normal_elementwise(x, seeds, rows, stream)


def normal_elementwise(x: Tensor, seeds: Tensor, rows: Tensor, stream: int) -> Tensor:
    """The same from torch's operations: equal words, and the last bit of a number may differ."""
    size = math.prod(x.shape[1:])
    block = seeds.new_ones(-(-size // 4)).cumsum(0)[None] - 1  # 0, 1, ...
    counter = (block, rows.long()[:, None], block * 0 + stream, block * 0)
    words = philox.philox4x32(counter, philox.key_of(seeds[:, None]))
    u0, u1, u2, u3 = ((word.double() + 0.5) * 2.0**-32 for word in words)  # [B, blocks]
    noise = x.new_empty(len(seeds), block.shape[1], 4)
    for i, (radial, angular) in enumerate(((u0, u1), (u2, u3))):
        radius, angle = (-2 * radial.log()).sqrt(), 2 * math.pi * angular
        noise[:, :, 2 * i] = radius * angle.cos()
        noise[:, :, 2 * i + 1] = radius * angle.sin()
    return noise.flatten(1)[:, :size].reshape(x.shape)
