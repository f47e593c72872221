"""This product: a backend through its contract, and whole images through the pipeline."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from subjects import Subject

from ddm_rt.bundle import Bundle
from ddm_rt.engine import backends
from ddm_rt.sample.pipeline import Pipeline
from peers import Call


class Ours:
    def __init__(
        self, subject: Subject, threads: int, backend: str = "auto", precision: str = "fp32", **request: Any
    ) -> None:
        """`request` holds arguments of `Pipeline.generate`."""
        bundle = Bundle.load(subject.of(precision), verify=False)
        self._engine = backends.load(bundle, backend, threads)
        self._pipeline, self._request = Pipeline(bundle, self._engine), request
        self.versions = dict(self._engine.versions)

    def step(self, feeds: dict[str, NDArray[Any]]) -> Call:
        given = {name: self._engine.array(value) for name, value in feeds.items()}
        x_t, t = given.pop("x_t"), given.pop("t")

        def run() -> NDArray[np.float32]:
            out: NDArray[np.float32] = np.asarray(self._engine.denoiser(x_t, t, given))
            return out

        return run

    def images(self, n: int) -> Call:
        seeds = itertools.count()

        def run() -> NDArray[np.float32]:
            made = self._pipeline.generate(n=n, seed=next(seeds), **self._request).images
            return made.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1

        return run
