"""What happens after sampling, away from the loop: decoding, events, and what becomes of a scope's draws."""

import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.contract import Array
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.shapes import Shape
from ddm_rt.serve.scheduling.queue import Work
from ddm_rt.serve.scheduling.ticket import Failed, Finished, State, Ticket

_log = logging.getLogger(__name__)

Members = Sequence[tuple[Work, int]]  # each with the number of an image in it


class Delivery:
    """Threads that take jobs in order. No job of it waits for the loop."""

    def __init__(
        self, pipeline: Pipeline, threads: int, decoded: Callable[[int], None], ended: Callable[[Work], None]
    ) -> None:
        """`decoded` is told the number of images after each decoding, `ended` of each request after its last event."""
        self._pipeline, self._decoded, self._ended = pipeline, decoded, ended
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"delivery-{i}", daemon=True) for i in range(threads)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Waits for the jobs that are there; does them, where `start` wasn't called."""
        if not self._threads[0].ident:
            self.start()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def images(self, members: Members, x0: Array, shape: Shape) -> None:
        """Samples [B, *shape] of finished images."""
        self._jobs.put(lambda: self._decode(members, x0, shape))

    def progress(self, steps_done: Sequence[tuple[Ticket, int]]) -> None:
        self._jobs.put(lambda: _tell(steps_done))

    def fail(self, work: Work, error: Exception, state: State = State.FAILED) -> None:
        """Ends a request that the caller has claimed."""
        self._jobs.put(lambda: self._fail(work, error, state))

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:  # noqa: BLE001 (whatever it is, others wait for their images)
                _log.exception("a delivery failed")

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
            self._hand_over(work, index, image)

    def _hand_over(self, work: Work, index: int, image: NDArray[np.uint8]) -> None:
        if not (work.ticket.deliver(index, image) and work.ticket.claim()):
            return
        assert work.prepared is not None
        try:
            manifest = work.prepared.manifest.tree()
            work.draws.close()
        except Exception as error:  # noqa: BLE001 (the ledger can't be written, say; the request is told)
            work.ticket.end(Failed(error), State.FAILED)
        else:
            work.ticket.end(Finished(manifest), State.FINISHED)
        self._ended(work)

    def _fail(self, work: Work, error: Exception, state: State) -> None:
        try:
            with work.draws.pop_all():
                raise error
        except Exception as raised:  # noqa: BLE001 (`error` itself, most of the time)
            if raised is not error:
                _log.error("the draws of a request could not be given back", exc_info=raised)
        work.ticket.end(Failed(error), state)
        self._ended(work)


def _tell(steps_done: Sequence[tuple[Ticket, int]]) -> None:
    for ticket, done in steps_done:
        ticket.advance(done)
