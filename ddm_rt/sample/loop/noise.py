"""Seeds and streams of the noise, a function of (seed, stream, row, position) alone; see `ddm_rt.kernels.philox`."""

from enum import IntEnum

import numpy as np

from ddm_rt.errors import DdmError
from ddm_rt.kernels.philox import STEP_STREAM, key_of, normal, philox4x32

__all__ = ["MAX_SEED", "Stream", "derive", "derive_range", "normal", "philox4x32"]

MAX_SEED = 2**64 - 1


class Stream(IntEnum):
    """Third word of the counter."""

    INITIAL = 0  # the first state; its row is 0
    STEP = STEP_STREAM  # noise added by a step, inside guided_step; its row is the step's index
    TOKENS = 2  # noise on a prompt's tokens (`annealing.py`); its row is the step's index


def derive(seed: int, index: int) -> int:
    """The seed of image `index` in a request that has `seed`; `derive(seed, 0) == seed`.

    Otherwise the first 64 bits of Philox with the key `seed` and the counter (index, 0, 0, 1), a counter that no noise
    uses. Raises DdmError for a seed outside 64 bits or an index outside 32.
    """
    return derive_range(seed, range(index, index + 1))[0]


def derive_range(seed: int, indices: range) -> list[int]:
    """`derive` of each index of a range that ascends in steps of 1. Raises DdmError as that does."""
    if not 0 <= seed <= MAX_SEED:
        raise DdmError(f"seed is {seed}; expected 0 to 2**64 - 1")
    if not indices:
        return []
    for index in (indices[0], indices[-1]):
        if not 0 <= index < 2**32:
            raise DdmError(f"image index is {index}; expected 0 to 2**32 - 1")
    if indices.start == 0:
        return [seed, *derive_range(seed, indices[1:])]
    zero = np.zeros(1, np.uint64)
    counter = (np.arange(indices.start, indices.stop, dtype=np.uint64), zero, zero, np.ones(1, np.uint64))
    r0, r1, _, _ = philox4x32(counter, key_of(np.array([seed], np.uint64)))
    seeds: list[int] = (r0 | r1 << np.uint64(32)).tolist()
    return seeds
