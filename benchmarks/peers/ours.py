"""This product: a backend through its contract, and whole images through the pipeline."""

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from subjects import Subject

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine import backends
from ddm_rt.engine.devices import Device
from ddm_rt.sample.pipeline import Pipeline
from peers import Call


class Ours:
    def __init__(
        self, subject: Subject, threads: int, backend: str = "auto", precision: str = "fp32", **request: Any
    ) -> None:
        """`request` holds arguments of `Pipeline.generate`."""
        if backend == "torch":  # rounds by itself
            bundle, rounded = Bundle.load(subject.bundle, verify=False), precision
        else:
            bundle, rounded = Bundle.load(subject.of(precision), verify=False), None
        self._engine = backends.load(bundle, backend, threads, precision=rounded)
        self._pipeline, self._request = Pipeline(bundle, self._engine), request
        self.versions = dict(self._engine.versions)

    def step(self, feeds: dict[str, NDArray[Any]]) -> Call:
        self.prepare(feeds)
        given = {name: self._engine.array(value) for name, value in feeds.items()}
        x_t, t = given.pop("x_t"), given.pop("t")

        def run() -> NDArray[np.float32]:
            out: NDArray[np.float32] = np.asarray(self._engine.denoiser(x_t, t, given))
            return out

        return run

    def prepare(self, feeds: dict[str, NDArray[Any]]) -> None:
        """What has to be there before a call."""

    def images(self, n: int) -> Call:
        seeds = itertools.count()

        def run() -> NDArray[np.float32]:
            made = self._pipeline.generate(n=n, seed=next(seeds), **self._request).images
            return made.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - 1

        return run


class OursCompiled(Ours):
    """The torch backend with networks that were compiled for the call's shapes by `ddm-rt build`."""

    def __init__(self, subject: Subject, threads: int, precision: str = "bf16", **request: Any) -> None:
        super().__init__(subject, threads, "torch", precision, **request)

    def prepare(self, feeds: dict[str, NDArray[Any]]) -> None:
        from ddm_rt.engine.torch import building, packages

        bundle, device = self._pipeline.bundle, Device("cpu")
        precision = Precision(self._engine.precision)
        batch, _, height, width = feeds["x_t"].shape
        found = packages.find(bundle, precision, device)
        shapes = [] if found is None else [code.inputs.get("x_t") for code in found.record.codes]
        if feeds["x_t"].shape not in shapes:
            building.build(bundle, precision, device, batches=(batch,), size=(height, width))
        self._engine = backends.load(bundle, "torch", self._engine.threads, "cpu", precision)
        assert "compiled" in self._engine.versions
        self.versions = dict(self._engine.versions)
