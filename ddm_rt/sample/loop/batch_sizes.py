"""Which batch sizes a pipeline's calls have, for each size of image."""

import logging
from collections.abc import Callable
from enum import StrEnum

from ddm_rt.bundle import Bundle
from ddm_rt.config import Family
from ddm_rt.engine.contract import Cond, Engine
from ddm_rt.sample.jobs import Shape
from ddm_rt.sample.loop.batch_probe import probe
from ddm_rt.schedule import step_table

Sizes = tuple[int, ...]
ProbeRows = Callable[[], tuple[Cond, int]]

_log = logging.getLogger(__name__)


class Mode(StrEnum):
    """Where a backend rounds differently at unlike batch sizes, only sizes that give the same bits are mixed: those
    with the largest, or those with the smallest, which make one image sooner and many later.
    """

    THROUGHPUT = "throughput"
    LATENCY = "latency"


class BatchSizes:
    """Probed once per shape. The choice follows from a manifest's `bucket` alone: never from load or free memory, since
    an image's bytes may depend on it.
    """

    def __init__(self, engine: Engine, bundle: Bundle, mode: Mode) -> None:
        self._engine, self._bundle = engine, bundle
        # What manifests of this pipeline say. None: the sizes that go with the largest.
        self.bucket = None if mode is Mode.THROUGHPUT else min(engine.batch_sizes or (1,))
        self.groups: dict[Shape, tuple[Sizes, ...]] = {}  # sizes that give the same bits; the largest size's first

    def of(self, shape: Shape, size: tuple[int, int], rows: ProbeRows, bucket: int | None) -> Sizes:
        """Those that go with `bucket`, ascending, for latents of `shape` and images of `size` in pixels.

        `rows` gives a `cond` of unlike rows to probe with, and their number. A bucket that isn't there is a warning.
        """
        if shape not in self.groups:
            self.groups[shape] = self._probed(shape, size, rows)
            _log.info("batch sizes for latents %s: %s", shape, self.groups[shape])
        groups = self.groups[shape]
        if bucket is None:
            return groups[0]
        for group in groups:
            if bucket in group:
                return group
        _log.warning("the manifest's bucket is %d; batch sizes here are %s: bytes may differ", bucket, groups)
        return groups[0]

    def _probed(self, shape: Shape, size: tuple[int, int], rows: ProbeRows) -> tuple[Sizes, ...]:
        config, engine = self._bundle.config, self._engine
        pixels = None if config.family is Family.PIXEL else engine.max_pixels
        most = None if pixels is None else max(pixels // (size[0] * size[1]), 1)
        if engine.batch_sizes is None and 1 in (most, engine.max_batch):
            return ((1,),)  # nothing to compare, and a large model's calls take long
        cond, count = rows()
        table = step_table(self._bundle.schedule, config.sampling.sampler, config.sampling.num_steps)
        return probe(engine, cond, count, shape, table.timesteps, most)
