"""Requests with images that wait for a slot, and whose image is next."""

from collections import defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample.jobs import Prepared
from ddm_rt.sample.shapes import Shape
from ddm_rt.serve.scheduling.heap import LazyHeap
from ddm_rt.serve.scheduling.ticket import Ticket

Urgency = tuple[int, float, int]


@dataclass(eq=False)
class Work:
    """A request as the scheduler knows it."""

    number: int  # in order of arrival
    n: int
    steps: int  # of each image
    shape: Shape
    key: str
    priority: int
    ticket: Ticket
    prepared: Prepared | None = None  # None while it is being checked
    states: NDArray[np.float32] | None = None  # [n, C, H, W], where sampling starts
    draws: ExitStack = field(default_factory=ExitStack)  # closing it says that they are done
    next: int = 0  # the first image that had no slot yet
    round: float = 0.0  # of the line: where its next image stands
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
    def urgency(self) -> Urgency:
        """Sorts by priority, then deadline, then arrival."""
        return -self.priority, self.deadline, self.number


class Line:
    """Higher priorities first. Among equals each request spreads its images over one round (start-time fair queuing,
    with requests weighted by their images): a single image never waits for a large request, and a large one is through
    about when it would be if nobody went before those that came first. Or, in a hurry, all of that with the earliest
    deadline first, which is the order that meets deadlines if any does.
    """

    def __init__(self) -> None:
        self._turns: LazyHeap[tuple[int, float, Urgency, Work]] = LazyHeap(_has_all)
        self._urgent: LazyHeap[tuple[Urgency, Work]] = LazyHeap(_has_all)
        self._rounds: defaultdict[int, float] = defaultdict(float)  # priority -> the round that its turns have got to

    def __bool__(self) -> bool:
        """Whether an image waits."""
        return self._turns.top() is not None

    def add(self, work: Work) -> None:
        """It joins in the round that its priority is at: newcomers don't catch up with what others have had."""
        work.round = self._rounds[work.priority]
        self._turns.push((-work.priority, work.round, work.urgency, work))
        self._urgent.push((work.urgency, work))

    def pick(self, hurry: bool = False) -> tuple[Work, int] | None:
        """The next image, as a work and a number in it; None where none waits."""
        work = self._most_urgent() if hurry else self._next_in_turn()
        if work is None:
            self._rounds.clear()
            return None
        self._rounds[work.priority] = max(self._rounds[work.priority], work.round)
        image, work.next, work.round = work.next, work.next + 1, work.round + 1 / work.n
        return work, image

    def _next_in_turn(self) -> Work | None:
        while (found := self._turns.top()) is not None:
            priority, round_, urgency, work = found
            if round_ == work.round:
                return work
            self._turns.replace((priority, work.round, urgency, work))
        return None

    def _most_urgent(self) -> Work | None:
        found = self._urgent.top()
        return None if found is None else found[-1]


def _has_all(item: tuple[Any, ...]) -> bool:
    work: Work = item[-1]
    return not work.waiting
