"""The scheduler's queue: which requests are taken in, how long they take, and whose image gets the next slot."""

import math
from bisect import insort
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddm_rt.runtime import Shape
from ddm_rt.sample.pipeline import Prepared
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, QueueFull
from ddm_rt.serve.scheduling.service import LiveRequest
from ddm_rt.serve.settings import ServeSettings

_LEAST_RETRY_S = 0.1
_WEIGHT = 0.1  # of the newest tick in the running means
_HEADROOM = 0.8  # a request is taken in if it needs no more than this part of the time it has


@dataclass(eq=False)
class Work(LiveRequest):
    """A request of the scheduler, whose images wait for slots, are in slots, or have left them."""

    prepared: Prepared | None = None  # None while the request is being checked
    states: NDArray[np.float32] | None = None  # [n, C, H, W], where sampling starts
    next: int = 0  # the first image that had no slot yet
    round: float = 0.0  # of the waiting line: where the next image stands
    steps_done: int = 0  # of all images together

    @property
    def deadline(self) -> float:
        return self.ticket.deadline

    @property
    def waiting(self) -> int:
        """Images that want a slot."""
        return 0 if self.ticket.claimed else self.n - self.next

    @property
    def steps_left(self) -> int:
        return self.n * self.steps - self.steps_done

    @property
    def urgency(self) -> tuple[int, float]:
        """Sorts by priority, then by deadline."""
        return -self.priority, self.deadline

    @property
    def turn(self) -> tuple[int, float, float]:
        """Sorts by priority, then by round, then by deadline."""
        return -self.priority, self.round, self.deadline


class Pace:
    """Seconds of ticks, by latent shape and images in them. Nothing is known before the first tick."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._seconds: dict[Shape, dict[int, float]] = {}

    def saw(self, shape: Shape, images: int, seconds: float) -> None:
        """A tick of so many images of a shape has taken so many seconds."""
        known = self._seconds.setdefault(shape, {})
        known[images] = known[images] + _WEIGHT * (seconds - known[images]) if images in known else seconds

    def step_s(self, shape: Shape) -> float:
        """Seconds that one step of one image takes of a full server's time; 0 where nothing is known."""
        if shape in self._seconds:
            images = max(self._seconds[shape])
            return self._seconds[shape][images] / images
        # Of another shape, in proportion to its numbers.
        return max((self.step_s(other) * math.prod(shape) / math.prod(other) for other in self._seconds), default=0.0)

    def least_s(self, work: Work) -> float:
        """Seconds below which the whole of `work` can't be done even alone."""
        fastest = min(self._seconds.get(work.shape, {}).values(), default=0.0)
        return max(work.steps * fastest, work.n * work.steps * self.step_s(work.shape))

    def backlog_s(self, steps: Mapping[Shape, int]) -> float:
        """Seconds for so many steps of images of each shape."""
        return sum(count * self.step_s(shape) for shape, count in steps.items())

    def longest_s(self, shapes: Iterable[Shape], steps: int) -> float:
        """Seconds that an image with so many steps is in its slot on a full server, of the slowest shape."""
        return max((self._slots * steps * self.step_s(shape) for shape in shapes), default=0.0)

    def late(self, works: Collection[Work], now: float, headroom: float) -> dict[Work, float]:
        """The requests that need more than the part `headroom` of the time they have, served by urgency; and the
        seconds that they are over it.
        """
        late: dict[Work, float] = {}
        # Images stay in their slots to their end, so that even the most urgent one waits for the next to leave.
        before_s = max((work.steps * self._tick_s(work) for work in works if work.next and work.steps_left), default=0)
        for work in sorted(works, key=lambda work: work.urgency):
            last = min(work.steps, work.steps_left)  # steps of its last image
            own_s = (work.steps_left - last) * self.step_s(work.shape)
            needed_s = (before_s + own_s if work.waiting else 0) + last * self._tick_s(work)
            over_s = needed_s - headroom * (work.deadline - now)
            if over_s > 0:
                late[work] = over_s
            before_s += work.steps_left * self.step_s(work.shape)
        return late

    def _tick_s(self, work: Work) -> float:
        """Seconds that a step of one of its images takes among others, in full slots."""
        return self._slots * self.step_s(work.shape)


class WaitingLine:
    """Requests with images that wait for a slot, in the order in which their images get one.

    Higher priorities go first. Among equals each request spreads its images over one round (start-time fair queuing,
    with requests weighted by their images): a single image never waits for a large request, and a large one is through
    about when it would be if nobody went before those that came first. In a hurry the earliest deadline goes first
    instead, which is the order that meets deadlines if any does.
    """

    def __init__(self) -> None:
        self._in_turn: list[Work] = []  # both sorted, and without requests that have no image left to wait
        self._by_urgency: list[Work] = []
        self._rounds: defaultdict[int, float] = defaultdict(float)  # priority -> the round that its turns have got to

    def __bool__(self) -> bool:
        """Whether an image waits."""
        return self._first(self._in_turn) is not None

    def add(self, work: Work) -> None:
        """The request joins in its priority's present round: newcomers don't catch up with what others have had."""
        work.round = self._rounds[work.priority]
        insort(self._in_turn, work, key=lambda work: work.turn)
        insort(self._by_urgency, work, key=lambda work: work.urgency)

    def remove(self, work: Work) -> None:
        """Does nothing where none of the request's images waits."""
        if work in self._in_turn:
            self._in_turn.remove(work)
            self._by_urgency.remove(work)

    def pick(self, hurry: bool = False) -> tuple[Work, int] | None:
        """The next image, as a request and a number in it; None where none waits."""
        work = self._first(self._by_urgency if hurry else self._in_turn)
        if work is None:
            self._rounds.clear()
            return None
        self._rounds[work.priority] = max(self._rounds[work.priority], work.round)
        self._in_turn.remove(work)
        image, work.next, work.round = work.next, work.next + 1, work.round + 1 / work.n
        if work.next < work.n:
            insort(self._in_turn, work, key=lambda work: work.turn)
        else:
            self._by_urgency.remove(work)
        return work, image

    def _first(self, works: list[Work]) -> Work | None:
        while works and works[0].ticket.claimed:
            self.remove(works[0])
        return works[0] if works else None


class RequestQueue:
    """The requests of a scheduler, those whose images all have slots too. Its owner holds a lock around every call."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.pace = Pace(settings.slots)
        self._works: list[Work] = []  # in order of arrival
        self._line = WaitingLine()
        self._backlog: Counter[Shape] = Counter()  # steps to do
        self._by_deadline: list[Work] = []  # sorted; those that were queued, and have not ended

    @property
    def waiting(self) -> int:
        """Images without a slot, those of requests that are being checked too."""
        return sum(work.n - work.next for work in self._works)

    def retry_s(self) -> float:
        """Seconds in which half of what there is to do is done."""
        return max(self.pace.backlog_s(self._backlog) / 2, _LEAST_RETRY_S)

    def enter(self, work: Work, now: float) -> None:
        """Keeps room for a request. Raises QueueFull, or DeadlineExceeded where no waiting helps."""
        waiting, queue = self.waiting, self._settings.queue
        if waiting + work.n > queue:
            raise QueueFull(f"{waiting} images wait, and these are {work.n}; at most {queue} may wait", self.retry_s())
        if (least_s := self.pace.least_s(work)) > work.deadline - now:
            raise DeadlineExceeded(
                f"deadline_s is {work.deadline - now:.3g}; this request takes {least_s:.3g} s here at the least"
            )
        # Where nothing else is to be done, waiting would not help; so it may try.
        if self._works and (over_s := self._too_late(work, now)) > 0:
            raise QueueFull("not everything would be done in time", max(over_s, _LEAST_RETRY_S))
        self._works.append(work)
        self._backlog[work.shape] += work.steps_left

    def add(self, work: Work) -> None:
        """The request's codes are drawn: its images may have slots."""
        self._line.add(work)
        insort(self._by_deadline, work, key=lambda work: work.deadline)

    @property
    def queued(self) -> bool:
        """Whether an image could have a slot."""
        return bool(self._line)

    def pick(self, most: int, now: float) -> list[tuple[Work, int]]:
        """Up to `most` images that get a slot now."""
        picked: list[tuple[Work, int]] = []
        hurry = most > 0 and self.queued and self._in_a_hurry(now)
        while len(picked) < most and (found := self._line.pick(hurry)) is not None:
            picked.append(found)
        return picked

    def change_steps(self, work: Work, steps: int) -> None:
        """A request that has entered has so many steps of each image, and not as many as were thought."""
        if work in self._works:  # else it has failed meanwhile, and its steps are gone
            self._backlog[work.shape] += work.n * (steps - work.steps)
        work.steps = steps

    def advance(self, work: Work, steps: int) -> None:
        """So many images of the request have done a step."""
        if work in self._works:
            work.steps_done += steps
            self._backlog[work.shape] -= steps

    def expired(self, now: float) -> list[Work]:
        """The requests whose deadline has passed, once each."""
        found: list[Work] = []
        while (soonest := self.soonest()) is not None and soonest <= now:
            found.append(self._by_deadline.pop(0))
        return found

    def forget(self, work: Work) -> None:
        """The request's last event is out, or it came to nothing before there was one. It may be forgotten twice."""
        if work not in self._works:
            return
        self._works.remove(work)
        self._backlog -= Counter({work.shape: work.steps_left})
        self._line.remove(work)
        if work in self._by_deadline:
            self._by_deadline.remove(work)

    def soonest(self) -> float | None:
        """The earliest deadline of the requests that may have slots and have not ended."""
        while self._by_deadline and self._by_deadline[0].ticket.claimed:
            self._by_deadline.pop(0)
        return self._by_deadline[0].deadline if self._by_deadline else None

    def _in_a_hurry(self, now: float) -> bool:
        soonest = self.soonest()
        if soonest is None or self._surely_in_time(soonest - now):
            return False
        return bool(self.pace.late(self._works, now, _HEADROOM))

    def _too_late(self, work: Work, now: float) -> float:
        """Seconds by which `work`, or others because of it, would come too late; 0 where none does."""
        soonest = self.soonest()
        time_s = work.deadline - now if soonest is None else min(soonest, work.deadline) - now
        if self._surely_in_time(time_s, work):
            return 0.0
        late = self.pace.late([*self._works, work], now, _HEADROOM)
        anyway = self.pace.late(self._works, now, _HEADROOM)
        return max((over_s for other, over_s in late.items() if other not in anyway), default=0.0)

    def _surely_in_time(self, time_s: float, *more: Work) -> bool:
        """Whether all requests together take less time than that, which is quicker to see than each one's lateness."""
        works = Counter({work.shape: work.steps_left for work in more})
        everything_s = self.pace.backlog_s(self._backlog + works)
        longest_s = self.pace.longest_s(self._backlog.keys() | works.keys(), self._settings.max_steps)
        return everything_s + 2 * longest_s < _HEADROOM * time_s
