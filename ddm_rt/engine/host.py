"""What backends on the CPU share: their arrays are numpy's, and the arithmetic between calls is the reference's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.composed import Composed
from ddm_rt.kernels.guided_step import guided_step

Array = NDArray[Any]


class HostArrays(Composed):
    """The part of `engine.contract.Engine` that handles arrays, over numpy's."""

    def guided_step(
        self,
        outputs: Sequence[Array],
        scales: Array,
        rows: Array,
        x: Array,
        x0_prev: Array,
        seeds: Array | None,
        counters: Array | None,
    ) -> tuple[Array, Array]:
        stepped: tuple[Array, Array] = guided_step(outputs, scales, rows, x, x0_prev, seeds, counters)
        return stepped

    def array(self, host: NDArray[Any]) -> Array:
        return np.ascontiguousarray(host)

    def series(self, host: NDArray[Any]) -> Sequence[Array]:
        return list(np.ascontiguousarray(host))

    def take(self, array: Array, index: NDArray[np.int64]) -> Array:
        return array.take(index, axis=0)

    def concat(self, arrays: Sequence[Array]) -> Array:
        return np.concatenate(arrays)
