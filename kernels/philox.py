"""Noise from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3).

A number is a function of (seed, stream, row, position) and of nothing else: no state, no global generator.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = Any  # numpy.ndarray of uint64, or torch.Tensor of int64
UInt64 = NDArray[np.uint64]
Tensor = Any  # torch.Tensor

STEP_STREAM = 1  # third word of the counter where a step adds noise

LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

# Blocks per image are rounded up to this before the logarithms and cosines. numpy computes those in vectors and may
# treat the end of an array apart; this way no image has such an end, whatever the batch.
_BLOCK_MULTIPLE = 64

# Angles whose cosines are worth a thread of their own: it takes 30 µs to begin, and these 90.
_SHARED = 2**13


def philox4x32(
    counter: tuple[Array, Array, Array, Array], key: tuple[Array, Array]
) -> tuple[Array, Array, Array, Array]:
    """Ten rounds over arrays that broadcast against each other: 32-bit words, each held in 64 bits.

    The same lines run on numpy's uint64 and torch's int64, whose products wrap to the same bits; the masks take off
    what a signed shift drags along.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((product1 >> 32) & LOW) ^ c1 ^ k0,
            product1 & LOW,
            ((product0 >> 32) & LOW) ^ c3 ^ k1,
            product0 & LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & LOW, (k1 + _WEYL[1]) & LOW
    return c0, c1, c2, c3


def key_of(seeds: Array) -> tuple[Array, Array]:
    """The key of each seed: its low word, its high word."""
    return seeds & LOW, (seeds >> 32) & LOW


def normal(
    seeds: UInt64,  # [B]
    rows: int | NDArray[np.integer],  # one for all, or [B]
    stream: int,
    shape: tuple[int, ...],
    threads: int = 1,
) -> NDArray[np.float32]:
    """Standard normal noise float32 [B, *shape], row-major: elements 4k to 4k + 3 come from block k.

    Key: the image's seed, low word first. Counter: (block, row, stream, 0). u = (r + ½)/2³², then Box-Muller in
    float64 on (u0, u1) and (u2, u3): √(-2·ln u0)·(cos 2πu1, sin 2πu1). With two `threads` or more, cosines of many
    images are computed beside the sines; the numbers are the same.
    """
    size = math.prod(shape)
    blocks = -(-size // (4 * _BLOCK_MULTIPLE)) * _BLOCK_MULTIPLE
    row = np.broadcast_to(np.asarray(rows, np.uint64), seeds.shape)[:, None]  # [B, 1]
    zero = np.zeros((), np.uint64)
    words = philox4x32(
        (np.arange(blocks, dtype=np.uint64)[None], row, np.array(stream, np.uint64), zero), key_of(seeds[:, None])
    )
    u0, u1, u2, u3 = ((np.ascontiguousarray(word) + 0.5) * 2.0**-32 for word in words)  # [B, blocks]
    noise = np.empty((len(seeds), blocks, 4), np.float32)
    angles = 2 * np.pi * np.stack((u1, u3))
    sines, cosines = _sines_and_cosines(angles, threads)
    for i, radial in enumerate((u0, u2)):
        radius = np.sqrt(-2 * np.log(radial))
        noise[:, :, 2 * i] = radius * cosines[i]
        noise[:, :, 2 * i + 1] = radius * sines[i]
    return np.ascontiguousarray(noise.reshape(len(seeds), -1)[:, :size]).reshape(-1, *shape)


def _sines_and_cosines(angles: NDArray[np.float64], threads: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """numpy has no vectors for them: they take half of the noise's time, so a second thread may have one of them."""
    if threads < 2 or angles.size < _SHARED:
        return np.sin(angles), np.cos(angles)
    try:
        beside = _second_thread().submit(np.cos, angles)
    except RuntimeError:  # Python ends, and its pools take nothing more, while a thread still samples
        return np.sin(angles), np.cos(angles)
    sines = np.sin(angles)
    # Where another caller's noise keeps the second thread busy, there is nothing to wait for.
    return sines, np.cos(angles) if beside.cancel() else beside.result()


@cache
def _second_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, "noise")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_second_thread.cache_clear)  # a fork hasn't its parent's threads


# For torch tensors, on the device that they are on. Written over their methods, so that the step's reference, which
# calls it, imports no torch.


def normal_like(x: Tensor, seeds: Tensor, rows: Tensor, stream: int) -> Tensor:
    """Standard normal noise like x (float32 [B, ...]) for seeds int64 [B] (bit patterns of unsigned ones) and rows [B].

    On the CPU these are numpy's bits, from numpy: torch's own logarithm may treat the end of an array apart, which
    would let an image see its batch. Elsewhere each number is computed alone, and nothing waits for the host.
    """
    if x.device.type == "cpu":
        words = seeds.numpy().view(np.uint64)
        return x.new_tensor(normal(words, rows.numpy(), stream, tuple(x.shape[1:])))
    return normal_elementwise(x, seeds, rows, stream)


def normal_elementwise(x: Tensor, seeds: Tensor, rows: Tensor, stream: int) -> Tensor:
    """The same from torch's operations: equal words, and the last bit of a number may differ."""
    size = math.prod(x.shape[1:])
    block = seeds.new_ones(-(-size // 4)).cumsum(0)[None] - 1  # 0, 1, ...
    counter = (block, rows.long()[:, None], block * 0 + stream, block * 0)
    words = philox4x32(counter, key_of(seeds[:, None]))
    u0, u1, u2, u3 = ((word.double() + 0.5) * 2.0**-32 for word in words)  # [B, blocks]
    noise = x.new_empty(len(seeds), block.shape[1], 4)
    for i, (radial, angular) in enumerate(((u0, u1), (u2, u3))):
        radius, angle = (-2 * radial.log()).sqrt(), 2 * math.pi * angular
        noise[:, :, 2 * i] = radius * angle.cos()
        noise[:, :, 2 * i + 1] = radius * angle.sin()
    return noise.flatten(1)[:, :size].reshape(x.shape)
