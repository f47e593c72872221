"""What every backend offers. Arrays are the backend's own; nothing above this room looks inside them."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = Any  # numpy.ndarray on ONNX Runtime, torch.Tensor on torch, a device buffer on TensorRT
Cond = Mapping[str, Array]  # named batch-first arrays; names and shapes stand in config.json


class Engine(Protocol):
    """A loaded bundle on one backend (`design`: conditioner, denoiser, decoder)."""

    backend: str
    precision: str
    threads: int
    versions: dict[str, str]

    def conditioner(
        self,
        context: NDArray[np.float32],  # [B, T, D]
        code: NDArray[np.int64],  # [B]; -1 is the null code
        indicator_scale: NDArray[np.float32],  # [B]
        added: Mapping[str, NDArray[Any]],
    ) -> Cond:
        """Once per prompt x code."""

    def denoiser(self, x_t: Array, t: Array, cond: Cond) -> Array:
        """Model output for x_t [B,C,H,W] at timesteps t float32 [B]: the only call inside the loop."""

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        """Images [B,channels,H,W] in [-1, 1], on the host."""

    def guided_step(
        self, outputs: Sequence[Array], scales: Array, rows: Array, x: Array, x0_prev: Array, z: Array | None
    ) -> tuple[Array, Array]:
        """Guidance and step-table update; see `ddm_rt.kernels.guided_step`. Returns (x, x0)."""

    def array(self, host: NDArray[Any]) -> Array:
        """A host array as the backend's own."""

    def take(self, array: Array, index: NDArray[np.int64]) -> Array:
        """Rows of `array` by index, on the device."""

    def concat(self, arrays: Sequence[Array]) -> Array:
        """Arrays joined along the batch axis, on the device."""
