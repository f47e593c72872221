"""Fake engines that stop where a test wants them to, or fail for the images that it names."""

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
from fake_engine import Array, FakeEngine, Quirk
from numpy.typing import NDArray
from patience import PATIENCE_S


class GatedEngine(FakeEngine):
    """Stops before the denoiser's call number `stop_at`, counted by `sizes`, until `go`."""

    def __init__(self, quirk: Quirk = "none") -> None:
        super().__init__(quirk)
        self.stop_at: int | None = None
        self.reached, self.go = threading.Event(), threading.Event()
        self.decoding = threading.Event()  # decoding waits for it
        self.decoding.set()
        self.step_s, self.now = 0.0, 0.0  # what a call takes by its own clock
        self.sizes: list[int] = []  # of the calls

    def denoiser(self, x_t: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        if self.stop_at is not None and len(self.sizes) == self.stop_at:
            self.reached.set()
            assert self.go.wait(PATIENCE_S)
        self.sizes.append(len(x_t))
        self.now += self.step_s
        return super().denoiser(x_t, t, cond)

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        assert self.decoding.wait(PATIENCE_S)
        return super().decoder(x0)


class FailingEngine(FakeEngine):
    """Can't bear images of one code: its conditioner, its denoiser or its decoder raises."""

    def __init__(self, part: str, code: int) -> None:
        super().__init__()
        self._part, self._code = part, code
        self.armed = False

    def conditioner(
        self, context: Array, code: Array, indicator_scale: Array, added: Mapping[str, Array]
    ) -> dict[str, Array]:
        if self.armed and self._part == "conditioner" and code[0] == self._code:
            raise RuntimeError("no such code today")
        return super().conditioner(context, code, indicator_scale, added)

    def denoiser(self, x_t: Array, t: Array, cond: Mapping[str, Array]) -> Array:
        poison = np.isclose(cond["token"][:, 0], 0.3 * np.sin(self._code + 2.0))
        if self.armed and self._part == "denoiser" and poison.any():
            raise RuntimeError("out of memory")
        out = super().denoiser(x_t, t, cond)
        if self.armed and self._part == "decoder":
            out[poison] = np.nan
        return out

    def decoder(self, x0: Array) -> NDArray[np.float32]:
        if not np.isfinite(x0).all():
            raise RuntimeError("non-finite values")
        return super().decoder(x0)

    def guided_step(self, *arguments: Any) -> tuple[Array, Array]:
        with np.errstate(invalid="ignore"):
            return super().guided_step(*arguments)
