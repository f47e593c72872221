"""What was taken in and has not ended, and whether more can be. Its owner holds a lock around every call."""

from collections import Counter

from ddm_rt.sample.shapes import Shape
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, QueueFull, TooMany
from ddm_rt.serve.scheduling.heap import LazyHeap
from ddm_rt.serve.scheduling.pace import Pace
from ddm_rt.serve.scheduling.queue import Line, Work
from ddm_rt.serve.scheduling.settings import ServeSettings
from ddm_rt.serve.scheduling.ticket import Ticket

_LEAST_RETRY_S = 0.1


class Book:
    """Every request from the moment there is room for it until its last event is out."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self.alive: dict[Ticket, Work] = {}
        self.waiting = 0  # images without a slot, those of requests that are being checked too
        self.pace = Pace(settings.slots)
        self._line = Line()
        self._keys: Counter[str] = Counter()  # requests alive
        self._backlog: Counter[Shape] = Counter()  # steps to do
        self._deadlines: LazyHeap[tuple[float, int, Work]] = LazyHeap(lambda item: item[-1].ticket.claimed)

    def enter(self, work: Work, now: float) -> None:
        """Keeps room for a request. Raises TooMany, QueueFull, or DeadlineExceeded where no waiting helps."""
        backlog_s = self.pace.backlog_s(self._backlog)
        retry_s = max(backlog_s / 2, _LEAST_RETRY_S)
        most, queue = self._settings.per_key, self._settings.queue
        if work.key and self._keys[work.key] >= most:
            raise TooMany(f"{most} requests of this key are under way, as many as one key may have", retry_s)
        if self.waiting + work.n > queue:
            raise QueueFull(f"{self.waiting} images wait, and these are {work.n}; at most {queue} may wait", retry_s)
        if (least_s := self.pace.least_s(work)) > work.deadline - now:
            raise DeadlineExceeded(
                f"deadline_s is {work.deadline - now:.3g}; this request takes {least_s:.3g} s here at the least"
            )
        # Where nothing else is to be done, waiting would not help; so it may try.
        if self.alive and (over_s := self._too_late(work, now)) > 0:
            raise QueueFull("not everything would be done in time", max(over_s, _LEAST_RETRY_S))
        self.alive[work.ticket] = work
        self._keys[work.key] += 1
        self.waiting += work.n
        self._backlog[work.shape] += work.steps_left

    def queue(self, work: Work) -> None:
        """Its codes are drawn: its images may have slots."""
        self._line.add(work)
        self._deadlines.push((work.deadline, work.number, work))

    @property
    def queued(self) -> bool:
        """Whether an image could have a slot."""
        return bool(self._line)

    def pick(self, most: int, now: float) -> list[tuple[Work, int]]:
        """Up to `most` images that get a slot now."""
        picked: list[tuple[Work, int]] = []
        hurry = self.waiting > 0 and most > 0 and self._in_a_hurry(now)
        while len(picked) < most and (found := self._line.pick(hurry)) is not None:
            picked.append(found)
        self.waiting -= len(picked)
        return picked

    def advance(self, work: Work, steps: int) -> None:
        """So many of its images have done a step."""
        if work.ticket in self.alive:
            work.steps_done += steps
            self._backlog[work.shape] -= steps

    def expired(self, now: float) -> list[Work]:
        """Those whose deadline has passed, once each."""
        found: list[Work] = []
        while (first := self._deadlines.top()) is not None and first[0] <= now:
            found.append(first[-1])
            self._deadlines.pop()
        return found

    def forget(self, work: Work) -> None:
        """Its last event is out, or it was never queued."""
        if self.alive.pop(work.ticket, None) is None:
            return
        self.waiting -= work.n - work.next
        work.next = work.n
        self._keys -= Counter({work.key: 1})
        self._backlog -= Counter({work.shape: work.steps_left})

    def soonest(self) -> float | None:
        """The earliest deadline of those that may have slots and have not ended."""
        first = self._deadlines.top()
        return None if first is None else first[0]

    def _in_a_hurry(self, now: float) -> bool:
        soonest = self.soonest()
        if soonest is None or self._surely_in_time(soonest - now):
            return False
        return bool(self.pace.late(tuple(self.alive.values()), now, self._settings.headroom))

    def _too_late(self, work: Work, now: float) -> float:
        """Seconds by which `work`, or others because of it, would come too late; 0 where none does."""
        soonest = self.soonest()
        time_s = work.deadline - now if soonest is None else min(soonest, work.deadline) - now
        if self._surely_in_time(time_s, work):
            return 0.0
        headroom, alive = self._settings.headroom, tuple(self.alive.values())
        late = self.pace.late([*alive, work], now, headroom)
        anyway = self.pace.late(alive, now, headroom)
        return max((over_s for other, over_s in late.items() if other not in anyway), default=0.0)

    def _surely_in_time(self, time_s: float, *more: Work) -> bool:
        """Whether all there is to do takes less than that: a look that spares a longer one."""
        works = Counter({work.shape: work.steps_left for work in more})
        everything_s = self.pace.backlog_s(self._backlog + works)
        longest_s = self.pace.longest_s(self._backlog.keys() | works.keys(), self._settings.max_steps)
        return everything_s + 2 * longest_s < self._settings.headroom * time_s
