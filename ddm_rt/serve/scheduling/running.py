"""Images in their slots: those of one latent shape share ticks, and shapes take turns. For the loop's thread alone."""

import logging
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from ddm_rt.engine.contract import Array
from ddm_rt.runtime import Shape
from ddm_rt.sample.loop.slots import Slots
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.scheduling.queue import Work

Member = tuple[Work, int]  # a request, and the number of an image in it

_log = logging.getLogger(__name__)


@dataclass
class Ticked:
    """What one tick did."""

    shape: Shape
    seconds: float
    advanced: Mapping[Work, int] = field(default_factory=dict)  # images that did a step; none where the engine raised
    finished: list[Member] = field(default_factory=list)
    samples: Array | None = None  # [len(finished), *shape]
    previewed: list[Member] = field(default_factory=list)  # images of which a preview is wanted now
    x0: Array | None = None  # [len(previewed), *shape]
    failed: tuple[Work, Exception] | None = None


@dataclass
class _Group:
    """Images of one latent shape."""

    shape: Shape
    slots: Slots
    members: dict[int, Member] = field(default_factory=dict)  # by number in the slots


class RunningImages:
    """The images that have slots. Where the engine raises, the images of that tick are halved until the one at fault
    is alone.
    """

    def __init__(self, pipeline: Pipeline, clock: Callable[[], float]) -> None:
        self._pipeline, self._clock = pipeline, clock
        self._groups: deque[_Group] = deque()  # the next to tick first; none is empty

    def __len__(self) -> int:
        return sum(len(group.members) for group in self._groups)

    def take_in(self, picked: Sequence[Member]) -> list[tuple[Work, Exception]]:
        """Gives images slots; returns the requests for which that failed."""
        failed: list[tuple[Work, Exception]] = []
        indices: defaultdict[Work, list[int]] = defaultdict(list)
        for work, index in picked:
            indices[work].append(index)
        for work in indices:
            try:
                self._admit(work, indices[work])
            except Exception as error:  # noqa: BLE001 (the request is told)
                failed.append((work, error))
        return failed

    def drop(self, works: Collection[Work]) -> None:
        """The images of these requests leave their slots unfinished."""
        if not works:
            return
        for group in self._groups:
            numbers = [number for number, (work, _) in group.members.items() if work in works]
            group.slots.drop(numbers)
            _pop(group, numbers)
        self._groups = deque(group for group in self._groups if group.members)

    def tick(self) -> Ticked:
        """One step of every image of one shape. There must be an image."""
        group = self._groups.popleft()
        start = self._clock()
        try:
            numbers, samples = group.slots.tick()
        except Exception as error:  # noqa: BLE001 (the request at fault is told)
            return self._part(group, error, self._clock() - start)
        seconds, advanced = self._clock() - start, Counter(work for work, _ in group.members.values())
        previewed, x0 = _previews(group)
        finished = _pop(group, numbers)
        if group.members:
            self._groups.append(group)
        return Ticked(group.shape, seconds, advanced, finished, samples, previewed, x0)

    def _admit(self, work: Work, indices: Sequence[int]) -> None:
        assert work.prepared is not None
        assert work.states is not None
        group = next((group for group in self._groups if group.shape == work.shape), None)
        if group is None:
            group = _Group(work.shape, self._pipeline.slots(work.shape))
        jobs = [work.prepared.jobs[i] for i in indices]
        numbers = group.slots.admit(
            work.prepared.table,
            work.states[list(indices)],
            jobs,
        )
        work.ticket.begin()
        if not group.members:
            self._groups.append(group)
        group.members.update(zip(numbers, ((work, index) for index in indices), strict=True))

    def _part(self, group: _Group, error: Exception, seconds: float) -> Ticked:
        if len(group.members) == 1:
            ((work, _),) = group.members.values()
            return Ticked(group.shape, seconds, failed=(work, error))
        _log.warning("a tick of %d images failed: %s; they part to find the one at fault", len(group.members), error)
        other = group.slots.split()
        members = dict(zip(other.numbers, _pop(group, other.numbers), strict=True))
        self._groups.extendleft((_Group(group.shape, other, members), group))
        return Ticked(group.shape, seconds)


def _previews(group: _Group) -> tuple[list[Member], Array | None]:
    """Images of which a preview is wanted now, and their x0. Where that fails, there are none: images go on."""
    wanted = {number: work.ticket.previews for number, (work, _) in group.members.items() if work.ticket.previews}
    if not wanted:
        return [], None
    try:
        numbers, x0 = group.slots.previewed(wanted)
    except Exception:  # noqa: BLE001 (said, and the images themselves are not at stake)
        _log.exception("previews are left out")
        return [], None
    return [group.members[number] for number in numbers], x0


def _pop(group: _Group, numbers: Collection[int]) -> list[Member]:
    """The images that have left the slots."""
    return [group.members.pop(number) for number in numbers]
