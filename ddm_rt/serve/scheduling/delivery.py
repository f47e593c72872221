"""What happens after sampling, away from the loop: images are decoded, and tickets are told."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ddm_rt.engine.contract import Array
from ddm_rt.sample.jobs import Shape
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.scheduling.request import Work
from ddm_rt.serve.scheduling.ticket import State, Ticket

_log = logging.getLogger(__name__)

Members = Sequence[tuple[Work, int]]  # each with the number of an image in it


class Delivery:
    """A thread that does in order what the loop leaves to it, and never waits for the loop."""

    def __init__(self, pipeline: Pipeline, decoded: Callable[[int], None], ended: Callable[[Work], None]) -> None:
        """`decoded` is told the number of images after each decoding, `ended` of each request after its last event."""
        self._pipeline, self._decoded, self._ended = pipeline, decoded, ended
        self._thread = ThreadPoolExecutor(1, "delivery")

    def close(self) -> None:
        """Waits for what there is to do."""
        self._thread.shutdown()

    def images(self, members: Members, x0: Array, shape: Shape) -> None:
        """Samples [B, *shape] of finished images."""
        self._submit(self._decode, members, x0, shape)

    def progress(self, steps_done: Sequence[tuple[Ticket, int]]) -> None:
        self._submit(_tell, steps_done)

    def fail(self, work: Work, error: Exception, state: State = State.FAILED) -> None:
        """Ends a request that the caller has claimed."""
        self._submit(self._fail, work, error, state)

    def _submit(self, job: Callable[..., None], *arguments: Any) -> None:
        self._thread.submit(job, *arguments).add_done_callback(_log_failure)

    def _decode(self, members: Members, x0: Array, shape: Shape) -> None:
        try:
            wanted = [i for i, (work, _) in enumerate(members) if not work.ticket.claimed]
            if len(wanted) < len(members):
                x0 = self._pipeline.engine.take(x0, np.array(wanted, np.int64))
            self._deliver([members[i] for i in wanted], x0, shape)
        finally:
            self._decoded(len(members))

    def _deliver(self, members: Members, x0: Array, shape: Shape) -> None:
        if not members:
            return
        try:
            images = self._pipeline.decode(x0, len(members), shape)
        except Exception as error:  # noqa: BLE001 (the request is told)
            if len(members) > 1:  # one that can't be decoded takes none of its neighbours with it
                for i, member in enumerate(members):
                    self._deliver([member], self._pipeline.engine.take(x0, np.array([i], np.int64)), shape)
            elif members[0][0].ticket.claim():
                self._fail(members[0][0], error, State.FAILED)
            return
        for (work, index), image in zip(members, images, strict=True):
            if work.ticket.deliver(index, image) and work.ticket.claim():
                work.finish()
                self._ended(work)

    def _fail(self, work: Work, error: Exception, state: State) -> None:
        work.fail(error, state)
        self._ended(work)


def _tell(steps_done: Sequence[tuple[Ticket, int]]) -> None:
    for ticket, done in steps_done:
        ticket.advance(done)


def _log_failure(job: "Future[None]") -> None:
    if (error := job.exception()) is not None:
        _log.error("a delivery failed", exc_info=error)
