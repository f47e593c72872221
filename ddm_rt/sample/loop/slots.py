"""Images in flight: each at its own row of its own step table, all of them in one denoiser call per tick.

This is the sampling loop, turned inside out: images may join and leave between any two steps. One of them ends with the
same bits whoever its neighbours were, since rows never meet and calls have sizes that round alike (`batch_sizes.py`).
"""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.contract import Array, Cond, Engine, Index, Update
from ddm_rt.sample.loop.annealing import NoiseAt
from ddm_rt.sample.loop.batch_sizes import split
from ddm_rt.sample.loop.guidance import Branches, TokenNoise
from ddm_rt.schedule import StepTable

Gather = Callable[[Sequence[Any]], Cond]

_F = 6  # of a row: a, b, c, d, e, g, f, ...


class Job(NamedTuple):
    """One image that is to be made."""

    seed: int
    branches: Branches
    apg: tuple[float, float] | None = None  # norm and η of projected guidance; None: plain guidance
    token_noise: TokenNoise | None = None  # at steps that don't keep all of a prompt's tokens


class _Walk(NamedTuple):
    """The steps of images that came together."""

    rows: NDArray[np.float32]  # [num_steps, 9]
    timesteps: NDArray[np.float32]  # [num_steps]
    guided: NDArray[np.bool_]  # [num_steps]
    kept: NDArray[np.float64]  # [num_steps]


@dataclass
class _Image:
    number: int
    walk: _Walk
    job: Job
    done: int = 0  # steps

    @property
    def stage(self) -> Hashable:
        """What `steady` depends on: most images of a batch have it in common."""
        return id(self.walk), self.done, len(self.job.branches.conditions) > 1, self.job.token_noise is None

    @property
    def conditions(self) -> tuple[Hashable, ...]:
        """1 to 3 of the next step, from the least conditioned on. A step without guidance has the last alone."""
        branches, kept = self.job.branches, float(self.walk.kept[self.done])
        every = branches.conditions if self.walk.guided[self.done] else branches.conditions[-1:]
        if kept == 1 or self.job.token_noise is None:
            return tuple(every)
        noise = NoiseAt(self.job.seed, self.done, self.job.token_noise.scale, kept)
        return tuple(each if each == self.job.token_noise.null else each._replace(noise=noise) for each in every)

    @property
    def steady(self) -> int:
        """Steps, from the next one on, until the image is done or its conditions change."""
        if self.job.token_noise is not None and self.walk.kept[self.done] < 1:
            return 1
        left = self.walk.guided[self.done :]
        changes = np.flatnonzero(left != left[0])
        return int(changes[0]) if len(changes) and len(self.job.branches.conditions) > 1 else len(left)


class _Kind(NamedTuple):
    """What images have in common that one call of `Engine.update` can do."""

    branches: int
    noisy: bool
    projected: bool


class _Call(NamedTuple):
    """One call of the denoiser, at each tick."""

    image_of: Index  # [rows of the call]
    cond: Cond
    t: Sequence[Array]  # of each tick [rows of the call]


@dataclass
class _Layout:
    """Which image and branch stands in which row of the denoiser's calls, and all that a tick needs besides the images'
    states: it is with the engine before the first tick, so that none waits for it. It holds until an image comes, goes,
    or changes its branches.
    """

    calls: list[_Call]
    branches: NDArray[np.int64]  # of each image
    projected: NDArray[np.bool_]  # of each image
    parts: dict[int, tuple[Index, ...]]  # number of branches -> the first row of each image's branch, or -1
    rows: Sequence[Array]  # of each of its ticks [images, 9]
    done: Sequence[Array]  # of each tick [images]
    noisy: NDArray[np.bool_]  # [ticks, images]
    guidance: dict[bytes, tuple[Array, Array | None]] = field(default_factory=dict)  # of a group, by its images' places
    tick: int = 0

    def groups(self) -> dict[_Kind, Index]:
        """The images of each kind at this tick."""
        kinds = 4 * self.branches + 2 * self.noisy[self.tick] + self.projected
        return {
            _Kind(int(kind) // 4, bool(kind & 2), bool(kind & 1)): np.flatnonzero(kinds == kind)
            for kind in np.unique(kinds)
        }


class Slots:
    """Images of one latent shape. Nothing in here is thread-safe."""

    def __init__(self, engine: Engine, gather: Gather, buckets: tuple[int, ...]) -> None:
        """`gather` makes a `cond` with one row per condition. Denoiser calls have sizes in `buckets`, ascending."""
        self._engine, self._gather, self.buckets = engine, gather, buckets
        self._images: list[_Image] = []
        self._numbers = 0
        self._state: Array = None  # [images, C, H, W]
        self._x0: Array = None
        self._keys: Array = None  # [images]
        self._layout: _Layout | None = None

    def __len__(self) -> int:
        return len(self._images)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Of the images that are here."""
        return tuple(image.number for image in self._images)

    @property
    def rows(self) -> int:
        """Rows of the next tick: every image times its branches."""
        return sum(len(image.conditions) for image in self._images)

    def admit(
        self,
        table: StepTable,
        x: NDArray[np.float32],  # [B, C, H, W], the first states, already times table.init_scale
        jobs: Sequence[Job],  # [B]
    ) -> range:
        """Takes B images in; returns the numbers that `tick` will name them by."""
        walk = _Walk(table.rows(), table.timesteps, table.guided, table.kept)
        numbers = range(self._numbers, self._numbers + len(x))
        self._numbers = numbers.stop
        images = [_Image(number, walk, job) for number, job in zip(numbers, jobs, strict=True)]
        state, keys = self._engine.array(x), self._engine.array(np.array([job.seed for job in jobs], np.uint64))
        arrays = state, state, keys  # e is 0 in a table's first row, so any finite x0_prev does
        if self._images:
            here = self._state, self._x0, self._keys
            arrays = tuple(self._engine.concat(pair) for pair in zip(here, arrays, strict=True))  # all, or it raises
        self._state, self._x0, self._keys = arrays
        self._images += images
        self._layout = None
        return numbers

    def drop(self, numbers: Collection[int]) -> None:
        """Images leave unfinished; numbers that aren't here are passed over."""
        self._keep([i for i, image in enumerate(self._images) if image.number not in numbers])

    def split(self) -> "Slots":
        """The later half of the images leaves for slots of its own, with its numbers."""
        half = len(self._images) // 2
        other = Slots(self._engine, self._gather, self.buckets)
        other._images, other._numbers = self._images, self._numbers
        other._state, other._x0, other._keys = self._state, self._x0, self._keys
        other._keep(list(range(half, len(self._images))))
        self._keep(list(range(half)))
        return other

    def tick(self) -> tuple[tuple[int, ...], Array | None]:
        """One step of every image. Returns the numbers of those that it finished and their samples [k, C, H, W].

        Where the denoiser or `gather` raises, no image has moved.
        """
        engine, images = self._engine, self._images
        if not images:
            return (), None
        if self._layout is None or self._layout.tick == len(self._layout.rows):
            self._layout = self._lay_out()
        layout, k = self._layout, self._layout.tick
        groups = layout.groups()
        if len(layout.calls) == len(groups) == 1:
            (call,), ((kind, every),) = layout.calls, groups.items()
            update, parts = self._update(layout, every, kind), layout.parts[kind.branches]
            self._state, self._x0 = engine.step(call.t[k], call.cond, call.image_of, parts, update)
        else:
            outputs = engine.concat(
                [
                    engine.denoiser(engine.take(self._state, call.image_of), call.t[k], call.cond)
                    for call in layout.calls
                ]
            )
            stepped = [self._step(layout, outputs, members, kind) for kind, members in groups.items()]
            order = np.argsort(np.concatenate(list(groups.values())))
            self._state, self._x0 = (engine.take(engine.concat(parts), order) for parts in zip(*stepped, strict=True))
        layout.tick += 1
        for image in images:
            image.done += 1
        finished = [i for i, image in enumerate(images) if image.done == len(image.walk.rows)]
        if not finished:
            return (), None
        numbers = tuple(images[i].number for i in finished)
        samples = self._state if len(finished) == len(images) else engine.take(self._state, np.array(finished))
        self._keep([i for i, image in enumerate(images) if image.done < len(image.walk.rows)])
        return numbers, samples

    def previewed(self, steps: Mapping[int, Collection[int]]) -> tuple[tuple[int, ...], Array | None]:
        """Of images by number: those that have just done one of these steps, and the x0 [k, C, H, W] that the denoiser
        foresees for them.
        """
        found = [i for i, image in enumerate(self._images) if image.done in steps.get(image.number, ())]
        numbers = tuple(self._images[i].number for i in found)
        return numbers, self._engine.take(self._x0, np.array(found, np.int64)) if found else None

    def _step(self, layout: _Layout, outputs: Array, members: Index, kind: _Kind) -> tuple[Array, Array]:
        """x and x0 of the images `members`, which are of one kind."""
        branches = [self._engine.take(outputs, part[members]) for part in layout.parts[kind.branches]]
        return self._engine.update(branches, self._update(layout, members, kind))

    def _update(self, layout: _Layout, members: Index, kind: _Kind) -> Update:
        noise = (self._keys, layout.done[layout.tick]) if kind.noisy else (None, None)
        given = layout.rows[layout.tick], self._state, self._x0, *noise
        if len(members) < len(self._images):
            given = tuple(None if array is None else self._engine.take(array, members) for array in given)
        rows, state, x0, seeds, counters = given
        scales, projection = self._guidance(layout, members, kind)
        return Update(scales, rows, state, x0, seeds, counters, projection)

    def _guidance(self, layout: _Layout, members: Index, kind: _Kind) -> tuple[Array, Array | None]:
        """`scales` and `projection` of an `Update`."""
        key = members.tobytes()
        if key not in layout.guidance:
            images = [self._images[i] for i in members]
            scales = np.array([image.job.branches.scales[: kind.branches - 1] for image in images], np.float32)
            scales, projection = scales.reshape(len(images), -1), None
            if kind.projected:
                limits = np.array([image.job.apg for image in images], np.float32)
                scales, projection = scales[:, :0], self._engine.array(np.concatenate([scales, limits], axis=1))
            layout.guidance[key] = self._engine.array(scales), projection
        return layout.guidance[key]

    def _lay_out(self) -> _Layout:
        """All first branches, then all second ones, then all third ones."""
        conditions = [image.conditions for image in self._images]
        counts = np.array([len(each) for each in conditions])
        places = [np.flatnonzero(counts > k) for k in range(counts.max())]
        image_of = np.concatenate(places)
        wanted = [conditions[i][k] for k, members in enumerate(places) for i in members]
        starts = np.cumsum([0, *(len(members) for members in places)])
        row_of = np.full((len(places), len(counts)), -1)
        for k, members in enumerate(places):
            row_of[k, members] = starts[k] + np.arange(len(members))
        images, engine = self._images, self._engine
        stages = [image.stage for image in images]
        first = dict(zip(stages, images, strict=True))  # an image of each
        numbers = {stage: number for number, stage in enumerate(first)}
        of_stage = np.array([numbers[stage] for stage in stages])
        ticks = min(image.steady for image in first.values())
        ahead = [(image.walk, slice(image.done, image.done + ticks)) for image in first.values()]
        t = np.stack([walk.timesteps[steps] for walk, steps in ahead], axis=1)[:, of_stage]
        table = np.stack([walk.rows[steps] for walk, steps in ahead], axis=1)[:, of_stage]
        done = np.add.outer(np.arange(ticks), np.array([image.done for image in images]))
        projected = (counts > 1) & np.array([image.job.apg is not None for image in images])
        calls = [
            _Call(
                image_of[rows],
                self._gather([wanted[row] for row in rows]),
                engine.series(t[:, image_of[rows]]),
            )
            for rows in split(len(wanted), self.buckets)
        ]
        parts = {int(count): tuple(row_of[:count]) for count in np.unique(counts)}
        series = engine.series(table), engine.series(done)
        return _Layout(calls, counts, projected, parts, *series, table[..., _F] != 0)

    def _keep(self, places: list[int]) -> None:
        if len(places) == len(self._images):
            return
        self._layout = None
        self._images = [self._images[i] for i in places]
        if not places:
            self._state = self._x0 = self._keys = None
            return
        index = np.array(places, np.int64)
        self._state, self._x0, self._keys = (
            self._engine.take(array, index) for array in (self._state, self._x0, self._keys)
        )
