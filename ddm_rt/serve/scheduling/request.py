"""A request that was taken in and has not ended: its ticket, its draws, and how far the scheduler has got with it."""

import logging
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample.jobs import Prepared, Shape
from ddm_rt.serve.scheduling.ticket import Failed, Finished, Ticket

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class LiveRequest:
    """A request of a service. Whoever claims its ticket ends it, by `finish` or by `fail`."""

    n: int
    steps: int  # of each image
    shape: Shape  # of the latents
    key: str
    priority: int
    ticket: Ticket
    draws: ExitStack = field(default_factory=ExitStack, kw_only=True)  # closing it says that they are done

    def finish(self) -> None:
        """The request ends with all its images, or fails where the ledger can't be written."""
        assert self.ticket.manifest is not None
        try:
            manifest = self.ticket.manifest.tree()
            self.draws.close()
        except Exception as error:  # noqa: BLE001 (the request is told)
            self.ticket.end(Failed(error))
        else:
            self.ticket.end(Finished(manifest))

    def fail(self, error: Exception) -> None:
        """The request ends with `error`, and its draws are given back."""
        self.give_back(error)
        self.ticket.end(Failed(error))

    def give_back(self, error: Exception) -> None:
        """Gives the request's draws back, because of `error`."""
        try:
            with self.draws.pop_all():
                raise error
        except Exception as raised:  # noqa: BLE001 (`error` itself, most of the time)
            if raised is not error:
                _log.error("the draws of a request could not be given back", exc_info=raised)


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
