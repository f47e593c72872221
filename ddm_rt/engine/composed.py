"""What an engine can do by its other calls. One that can do it at once overrides it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.contract import Array, Index


class Composed:
    """The part of `engine.contract.Engine` that needs no backend's own."""

    batch_sizes: tuple[int, ...] | None = None

    def step(
        self: Any,
        x: Array,
        x0_prev: Array,
        t: Array,
        cond: Mapping[str, Array],
        image_of: Index,
        parts: Sequence[Index],
        scales: Array,
        rows: Array,
        seeds: Array | None,
        counters: Array | None,
    ) -> tuple[Array, Array]:
        outputs = self.denoiser(self.take(x, image_of), t, cond)
        branches = [self.take(outputs, part) for part in parts]
        stepped: tuple[Array, Array] = self.guided_step(branches, scales, rows, x, x0_prev, seeds, counters)
        return stepped

    def images(self: Any, x0: Array) -> NDArray[np.uint8]:
        return grey_levels(self.decoder(x0))


def grey_levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pixels [B,channels,H,W], nominally in [-1, 1], as uint8 [B,H,W,channels]."""
    levels: NDArray[np.uint8] = np.rint((np.clip(pixels, -1, 1) + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    return levels.transpose(0, 2, 3, 1)
