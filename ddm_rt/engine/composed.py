"""What engines share: the contract over calls of whole networks, and what an engine can do by its other calls."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.engine.contract import Array, Cond, Index, Update, check_finite, conditioner_feeds
from ddm_rt.errors import DdmError
from ddm_rt.runtime import TensorSpec


class Composed:
    """The part of `engine.contract.Engine` that needs no backend's own. One that can do it at once overrides it."""

    machine: str | None = None
    batch_sizes: tuple[int, ...] | None = None
    cond: tuple[TensorSpec, ...] | None = None
    projects: bool = True

    def step(
        self: Any, t: Array, cond: Cond, image_of: Index, parts: Sequence[Index], update: Update
    ) -> tuple[Array, Array]:
        outputs = self.denoiser(self.take(update.x, image_of), t, cond)
        stepped: tuple[Array, Array] = self.update([self.take(outputs, part) for part in parts], update)
        return stepped

    def update(self: Any, outputs: Sequence[Array], update: Update) -> tuple[Array, Array]:
        *step, projection = update
        if projection is not None:
            outputs = [self.projected_guidance(outputs, projection)]
        stepped: tuple[Array, Array] = self.guided_step(outputs, *step)
        return stepped

    def images(self: Any, x0: Array) -> NDArray[np.uint8]:
        return grey_levels(self.decoder(x0))


class OfNetworks(Composed):
    """An engine calls the bundle's networks by name, and this makes the contract's four calls of it. Text encoder and
    conditioner, which run once per prompt, are given host arrays.
    """

    _bundle: Bundle

    @abstractmethod
    def _call(self, name: str, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """The network's outputs by name, in its order."""

    @abstractmethod
    def host(self, array: Array) -> NDArray[np.float32]:
        """The array's values on the host."""

    def text_encoder(self, input_ids: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.float32]]:
        if self._bundle.config.prompt_free:
            raise DdmError(f"{self._bundle.path}: is prompt-free, so it has no text encoder")
        return {name: self.host(value) for name, value in self._call("text_encoder", input_ids).items()}

    def conditioner(
        self,
        context: NDArray[np.float32],
        code: NDArray[np.int64],
        indicator_scale: NDArray[np.float32],
        added: Mapping[str, NDArray[Any]],
    ) -> Mapping[str, Array]:
        feeds = conditioner_feeds(self._bundle.config, context, code, indicator_scale, added)
        return self._call("conditioner", feeds)

    def denoiser(self, x_t: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        return next(iter(self._call("denoiser", {"x_t": x_t, "t": t, **cond}).values()))

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        image = self.host(next(iter(self._call("decoder", {"x0": x0}).values())))
        check_finite(np.isfinite(image).all(), self._bundle)
        return image


def grey_levels(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pixels [B,channels,H,W], nominally in [-1, 1], as uint8 [B,H,W,channels]."""
    levels: NDArray[np.uint8] = np.rint((np.clip(pixels, -1, 1) + np.float32(1)) * np.float32(127.5)).astype(np.uint8)
    return levels.transpose(0, 2, 3, 1)


def aligned(host: NDArray[Any], alignment: int) -> NDArray[Any]:
    """The K entries of a host array [K, ...] as rows of a matrix, each padded with zeros to a multiple of `alignment`
    bytes.
    """
    entries = np.ascontiguousarray(host).reshape(len(host), -1)
    width = -(-entries.shape[1] * host.itemsize // alignment) * alignment // host.itemsize
    return np.pad(entries, ((0, 0), (0, width - entries.shape[1])))
