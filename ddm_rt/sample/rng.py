"""Noise from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 3.3).

A number is a function of (seed, stream, row, position) and of nothing else: no state, no global generator.
"""

import math
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError

UInt64 = NDArray[np.uint64]
Words = tuple[UInt64, UInt64, UInt64, UInt64]  # 32-bit words, each held in 64 bits

MAX_SEED = 2**64 - 1

_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))

# Blocks per image are rounded up to this before the logarithms and cosines. numpy computes those in vectors and may
# treat the end of an array apart; this way no image has such an end, whatever the batch.
_BLOCK_MULTIPLE = 64


class Stream(IntEnum):
    """Third word of the counter."""

    INITIAL = 0  # the first state; its row is 0
    STEP = 1  # noise added by a step; its row is the step's index


def philox4x32(counter: Words, key: tuple[UInt64, UInt64]) -> Words:
    """Ten rounds over arrays that broadcast against each other; every element is below 2^32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def normal(
    seeds: UInt64,  # [B]
    rows: int | NDArray[np.integer],  # one for all, or [B]
    stream: Stream,
    shape: tuple[int, ...],
) -> NDArray[np.float32]:
    """Standard normal noise float32 [B, *shape], row-major: elements 4k to 4k + 3 come from block k.

    Key: the image's seed, low word first. Counter: (block, row, stream, 0). u = (r + ½)/2³², then Box-Muller in
    float64 on (u0, u1) and (u2, u3): √(-2·ln u0)·(cos 2πu1, sin 2πu1).
    """
    size = math.prod(shape)
    blocks = -(-size // (4 * _BLOCK_MULTIPLE)) * _BLOCK_MULTIPLE
    row = np.broadcast_to(np.asarray(rows, np.uint64), seeds.shape)[:, None]  # [B, 1]
    zero = np.zeros((), np.uint64)
    words = philox4x32(
        (np.arange(blocks, dtype=np.uint64)[None], row, np.array(int(stream), np.uint64), zero), _key(seeds[:, None])
    )
    u0, u1, u2, u3 = ((np.ascontiguousarray(word) + 0.5) * 2.0**-32 for word in words)  # [B, blocks]
    noise = np.empty((len(seeds), blocks, 4), np.float32)
    for i, (radial, angular) in enumerate(((u0, u1), (u2, u3))):
        radius, angle = np.sqrt(-2 * np.log(radial)), 2 * np.pi * angular
        noise[:, :, 2 * i] = radius * np.cos(angle)
        noise[:, :, 2 * i + 1] = radius * np.sin(angle)
    return np.ascontiguousarray(noise.reshape(len(seeds), -1)[:, :size]).reshape(-1, *shape)


def derive(seed: int, index: int) -> int:
    """The seed of image `index` in a request that has `seed`; `derive(seed, 0) == seed`.

    Otherwise the first 64 bits of Philox with the key `seed` and the counter (index, 0, 0, 1), a counter that no noise
    uses. Raises DdmError for a seed outside 64 bits or an index outside 32.
    """
    if not 0 <= seed <= MAX_SEED:
        raise DdmError(f"seed is {seed}; expected 0 to 2**64 - 1")
    if not 0 <= index < 2**32:
        raise DdmError(f"image index is {index}; expected 0 to 2**32 - 1")
    if index == 0:
        return seed
    zero = np.zeros(1, np.uint64)
    counter = (np.array([index], np.uint64), zero, zero, np.ones(1, np.uint64))
    r0, r1, _, _ = philox4x32(counter, _key(np.array([seed], np.uint64)))
    return int(r0[0]) | int(r1[0]) << 32


def _key(seeds: UInt64) -> tuple[UInt64, UInt64]:
    return seeds & _LOW, seeds >> _SHIFT
