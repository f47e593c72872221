"""Batch sizes of denoiser and decoder calls, for each size of image. A backend may round differently at another batch
size or position; only sizes that gave the same bits in a probe are mixed, so that an image's bytes don't depend on its
batch.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import ddm_rt
from ddm_rt.bundle import Bundle
from ddm_rt.config import Family
from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.engine.user_cache import Folder
from ddm_rt.errors import DdmError
from ddm_rt.files import sha256
from ddm_rt.runtime import Shape, Size
from ddm_rt.sample.loop.noise import Stream, normal
from ddm_rt.schedule import step_table

Sizes = tuple[int, ...]
ProbeRows = Callable[[], tuple[Cond, int]]

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)

# Latent numbers in one call; keeps the probe and the calls of large models within memory.
_MAX_ELEMENTS = 2**18

# Answers of probes, each of some tens of bytes.
_KEPT = Folder("batch-sizes", 2**20)

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

    def of(self, shape: Shape, size: Size, rows: ProbeRows, bucket: int | None) -> Sizes:
        """Those that go with `bucket`, ascending, for latents of `shape` and images of `size` in pixels.

        `rows` gives a `cond` of unlike rows to probe with, and their number. A bucket that isn't there is a warning.
        """
        if shape not in self.groups:
            self.groups[shape] = self._probed(shape, size, rows)
            _log.debug("batch sizes for latents %s: %s", shape, self.groups[shape])
        groups = self.groups[shape]
        if bucket is None:
            return groups[0]
        for group in groups:
            if bucket in group:
                return group
        _log.warning("the manifest's bucket is %d; batch sizes here are %s: bytes may differ", bucket, groups)
        return groups[0]

    def _probed(self, shape: Shape, size: Size, rows: ProbeRows) -> tuple[Sizes, ...]:
        config, engine = self._bundle.config, self._engine
        pixels = None if config.family is Family.PIXEL else engine.max_pixels
        most = None if pixels is None else max(pixels // (size[0] * size[1]), 1)
        if engine.batch_sizes is None and 1 in (most, engine.max_batch):
            return ((1,),)  # nothing to compare, and a large model's calls take long
        answer = KeptAnswer(engine, self._bundle, (*shape, most or 0))
        if (kept := answer.read()) is not None:
            return kept
        cond, count = rows()
        table = step_table(self._bundle.schedule, config.sampling.sampler, config.sampling.num_steps)
        found = probe(engine, cond, count, shape, table.timesteps, most)
        answer.keep(found)
        return found


class KeptAnswer:
    """What a probe found, in the user's cache for the next process: a backend that compiles for each batch size takes
    longer to answer than to make the first image.
    """

    def __init__(self, engine: Engine, bundle: Bundle, asked: tuple[int, ...]) -> None:
        """`asked`: what the probe was given besides. Of an engine that can't say what its bits depend on, nothing is
        kept.
        """
        self._name: str | None = None
        if engine.machine is not None:
            bits = [
                ddm_rt.__version__,
                engine.backend,
                engine.precision,
                engine.threads,
                engine.versions,
                engine.machine,
            ]
            key = [*bits, engine.batch_sizes, engine.max_batch, bundle.bundle_id, asked, sha256(Path(__file__))]
            self._name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()

    def read(self) -> tuple[Sizes, ...] | None:
        if self._name is None:
            return None
        try:
            content = _KEPT.read(self._name)
        except (DdmError, OSError) as error:
            self._without(error)
            return None
        return None if content is None else tuple(tuple(group) for group in json.loads(content))

    def keep(self, groups: tuple[Sizes, ...]) -> None:
        if self._name is None:
            return
        try:
            _KEPT.write(self._name, json.dumps(groups).encode())
        except (DdmError, OSError) as error:
            self._without(error)

    def _without(self, error: Exception) -> None:
        _log.info("which batch sizes give the same bits is found at every start: %s", error)
        self._name = None


def probe(
    engine: Engine,
    cond: Cond,
    cond_rows: int,
    shape: Shape,
    timesteps: NDArray[np.float32],
    most: int | None = None,
) -> tuple[Sizes, ...]:
    """Groups of batch sizes that give the same bits, each ascending, for latents of `shape` (C, H, W); that of the
    largest size first.

    Denoiser and decoder run on fixed noise at every candidate size: once in order, once at shifted positions among
    other neighbours, and once with the first row at every position. A size whose rows differ between these is dropped
    (size 1 can't). `cond` has `cond_rows` rows, which are repeated; `timesteps` are those of a table. No size exceeds
    `most` and the engine's `max_batch`.

    Raises DdmError where no size is left of those that the engine takes.
    """
    sizes = engine.batch_sizes
    if sizes is None:
        most = min(engine.max_batch or CANDIDATES[-1], most or CANDIDATES[-1], _MAX_ELEMENTS // int(np.prod(shape)))
        sizes = tuple(size for size in CANDIDATES if size <= most) or (1,)
    x = engine.array(normal(np.arange(sizes[-1], dtype=np.uint64), 0, Stream.INITIAL, shape))

    def run(index: NDArray[np.int64]) -> NDArray[np.float32]:
        t = engine.array(timesteps[index * 7 % len(timesteps)])  # neighbouring rows at unlike noise levels
        out = engine.denoiser(engine.take(x, index), t, take(engine, cond, index % cond_rows))
        return engine.decoder(out)

    steady: dict[int, NDArray[np.float32]] = {}  # size -> its rows in order
    for size in sizes:
        in_order = np.arange(size)
        rows = run(in_order)
        others = ((in_order + 1) % max(size // 2, 1), np.zeros_like(in_order))
        if all(np.array_equal(_bits(run(other)), _bits(rows[other])) for other in others):
            steady[size] = rows
    if not steady:
        raise DdmError(f"backend {engine.backend}: an image depends on its neighbours at each batch size of {sizes}")
    groups: list[list[int]] = []  # each from its largest size downwards, which the others are held against
    for size in reversed(steady):
        same = [group for group in groups if np.array_equal(_bits(steady[group[0]][:size]), _bits(steady[size]))]
        if same:
            same[0].append(size)
        else:
            groups.append([size])
    return tuple(tuple(reversed(group)) for group in groups)


def split(rows: int, buckets: Sequence[int]) -> list[NDArray[np.int64]]:
    """Row numbers of each call, in order: every call has a size in `buckets` (ascending), the last may be filled up
    by starting again at row 0. A call is filled up rather than split where that wastes at most a quarter of it.
    """
    calls, start = [], 0
    while start < rows:
        left = rows - start
        above = min((size for size in buckets if size >= left), default=None)
        below = max((size for size in buckets if size <= left), default=None)
        if above is not None and (below is None or 4 * left >= 3 * above):
            size = above
        else:
            size = below or buckets[0]
        calls.append(np.arange(start, start + size, dtype=np.int64) % rows)
        start += size
    return calls


def take(engine: Engine, cond: Cond, index: NDArray[np.int64]) -> dict[str, Array]:
    """Rows of every array of `cond`."""
    return {name: engine.take(array, index) for name, array in cond.items()}


def concat(engine: Engine, conds: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Several `cond` joined along the batch axis."""
    return {name: engine.concat([cond[name] for cond in conds]) for name in conds[0]}


def _bits(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Equal bits, not equal numbers: -0 is not 0, and a NaN is itself."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32)
