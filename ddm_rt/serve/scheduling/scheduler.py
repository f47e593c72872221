"""The engine's loop: images of all requests in one batch, joining and leaving it between steps."""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np

from ddm_rt.engine.contract import Array
from ddm_rt.runtime import Shape
from ddm_rt.sample.manifest import Manifest
from ddm_rt.sample.pipeline import Pipeline, Prepared
from ddm_rt.sample.request import Extent, Request
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining
from ddm_rt.serve.scheduling.queue import RequestQueue, Work
from ddm_rt.serve.scheduling.running import Member, RunningImages, Ticked
from ddm_rt.serve.scheduling.service import Service
from ddm_rt.serve.scheduling.stats import Stats
from ddm_rt.serve.scheduling.ticket import Ticket
from ddm_rt.serve.settings import ServeSettings

_log = logging.getLogger(__name__)


class Scheduler(Service[Work]):
    """Samples all requests in one thread of its own.

    An image's bytes are those that `Pipeline.generate` gives for the same request, whatever else is in flight. The
    pipeline must not sample anything else meanwhile; its bundle and its ledger may be read.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: ServeSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`clock` gives seconds, which deadlines and the time of a tick are measured by."""
        settings = ServeSettings() if settings is None else settings
        super().__init__(pipeline, settings, clock)
        self._queue = RequestQueue(settings)
        self._gone: list[Work] = []  # claimed: their images are to leave their slots
        self._occupied = self._undecoded = 0
        self._running = RunningImages(pipeline, clock)  # the loop's alone, without the lock
        self._delivery = ThreadPoolExecutor(1, "delivery")  # does in order what the loop leaves to it
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)

    def start(self) -> None:
        """Probes the batch sizes of the bundle's own image size, which takes some calls of the engine, and samples
        from then on.
        """
        assert self.pipeline.buckets
        self._thread.start()

    def submit(
        self, request: Request, *, key: str = "", priority: int = 0, deadline_s: float | None = None, previews: int = 0
    ) -> Ticket:
        size = self._extent(request, deadline_s)
        work = Work(*size, key, priority, self._ticket(size, deadline_s, previews))
        return self._take_in(work, self.pipeline.prepare(request))

    def replay(
        self, manifest: Manifest, *, priority: int = 0, deadline_s: float | None = None, previews: int = 0
    ) -> Ticket:
        """Takes in a request whose codes were drawn elsewhere: the images of `manifest`. The ledger isn't asked.

        Raises what `submit` raises, and DdmError for a manifest that this pipeline can't make.
        """
        prepared = self.pipeline.recorded(manifest)
        size = Extent(len(manifest.images), prepared.table.num_steps, prepared.shape)
        return self._take_in(Work(*size, "", priority, self._ticket(size, deadline_s, previews)), nullcontext(prepared))

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def stats(self) -> Stats:
        with self._changed:
            return self._tally.stats(
                requests=len(self._alive),
                waiting=self._queue.waiting,
                occupied=self._occupied,
                decoding=self._undecoded,
                slots=self.settings.slots,
                queue=self.settings.queue,
            )

    def close(self) -> None:
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._fail_all(Draining("the server has stopped"))
        self._delivery.shutdown()

    def _take_in(self, work: Work, preparing: AbstractContextManager[Prepared]) -> Ticket:
        with self._taking_in(work, preparing) as prepared:
            work.prepared, work.states = prepared, self.pipeline.first_states(prepared, range(work.n))
        with self._changed:
            self._queue.add(work)
            self._changed.notify_all()
        return work.ticket

    def _count_steps(self, request: Work, steps: int) -> None:
        self._queue.change_steps(request, steps)
        super()._count_steps(request, steps)

    def _keep_room(self, work: Work) -> None:
        self._queue.enter(work, self._clock())

    def _retry_s(self) -> float:
        return self._queue.retry_s()

    def _forget(self, work: Work) -> None:
        with self._changed:
            self._queue.forget(work)
            super()._forget(work)

    def _is_idle(self) -> bool:
        return not (self._alive or self._occupied or self._undecoded)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    soonest = self._queue.soonest()
                    self._changed.wait(None if soonest is None else max(soonest - self._clock(), 0.0))
                if self._closing:
                    return
                changes = self._has_changes()
            try:
                if changes:
                    self._leave_and_join()
                if self._running:
                    self._account(self._running.tick())
            except Exception as error:  # noqa: BLE001 (one turn's failure must not end all serving)
                _log.exception("a turn of the loop failed; requests under way fail with it")
                self._fail_all(error)

    def _has_work(self) -> bool:
        return self._closing or self._occupied > 0 or self._has_changes()

    def _has_changes(self) -> bool:
        """Whether images have to leave or may join: at most turns nothing does. What runs between two steps of the
        engine runs on caches that the engine has filled, and takes twice its time.
        """
        if self._gone or (self._room() > 0 and self._queue.queued):
            return True
        soonest = self._queue.soonest()
        return soonest is not None and soonest <= self._clock()

    def _leave_and_join(self) -> None:
        """Between two steps, images of ended requests leave their slots, and waiting ones get them."""
        with self._changed:
            now = self._clock()
            gone, self._gone = self._gone, []
            late = self._queue.expired(now)
        for work in late:
            self._fail(work, DeadlineExceeded("the request was not done by its deadline"))
        self._running.drop({*gone, *late})
        with self._changed:
            self._occupied = len(self._running)
            picked = self._queue.pick(self._room(), now)
        for work, error in self._running.take_in(picked):
            self._fail(work, error)
        with self._changed:
            self._occupied = len(self._running)
            self._changed.notify_all()

    def _room(self) -> int:
        """The number of images that may get a slot: fewer where decoding doesn't keep up."""
        return min(self.settings.slots, 2 * self.settings.slots - self._undecoded) - self._occupied

    def _account(self, ticked: Ticked) -> None:
        with self._changed:
            images = sum(ticked.advanced.values())
            for observer in self._observers:
                observer.ticked(ticked.seconds, images, ticked.advanced)
            # Images that are done don't wait for the previews of others.
            previewed = ticked.previewed if self._undecoded < self.settings.slots else []
            self._undecoded += len(ticked.finished) + len(previewed)
            if images:
                self._queue.pace.saw(ticked.shape, images, ticked.seconds)
            for work, steps in ticked.advanced.items():
                self._queue.advance(work, steps)
            if ticked.finished or ticked.failed is not None:
                self._occupied = len(self._running)
                self._changed.notify_all()
        told = [(work.ticket, work.steps_done) for work in ticked.advanced if work.ticket.wants_progress]
        if told:
            self._deliver(_tell_progress, told)
        if previewed:
            self._deliver(self._preview, previewed, ticked.x0, ticked.shape)
        if ticked.finished:
            self._deliver(self._decode, ticked.finished, ticked.samples, ticked.shape)
        if ticked.failed is not None:
            self._fail(*ticked.failed)

    def _leave(self, work: Work) -> None:
        with self._changed:
            self._gone.append(work)
            self._changed.notify_all()

    def _abandon(self, work: Work, error: Exception) -> None:
        self._leave(work)
        self._deliver(self._give_up, work, error)

    def _deliver(self, job: Callable[..., None], *arguments: Any) -> None:
        self._delivery.submit(job, *arguments).add_done_callback(_log_failure)

    # What follows is called by the delivery's thread, which never waits for the loop.

    def _preview(self, members: Sequence[Member], x0: Array, shape: Shape) -> None:
        """Decodes what is foreseen [B, *shape] of images that are under way. Where that fails, they have a preview
        less.
        """
        try:
            wanted = [i for i, (work, _) in enumerate(members) if not work.ticket.claimed]
            if wanted:
                x0 = self.pipeline.engine.take(x0, np.array(wanted, np.int64))
                images = self.pipeline.decode(x0, len(wanted), self.pipeline.batch_sizes(shape))
                for i, image in zip(wanted, images, strict=True):
                    work, index = members[i]
                    work.ticket.preview(index, image)
        finally:
            self._decoded(len(members))

    def _decoded(self, images: int) -> None:
        with self._changed:
            self._undecoded -= images
            self._changed.notify_all()

    def _decode(self, members: Sequence[Member], x0: Array, shape: Shape) -> None:
        """Decodes the samples [B, *shape] of finished images, and hands the images over."""
        try:
            wanted = [i for i, (work, _) in enumerate(members) if not work.ticket.claimed]
            if len(wanted) < len(members):
                x0 = self.pipeline.engine.take(x0, np.array(wanted, np.int64))
            self._decode_wanted([members[i] for i in wanted], x0, shape)
        finally:
            self._decoded(len(members))

    def _decode_wanted(self, members: Sequence[Member], x0: Array, shape: Shape) -> None:
        if not members:
            return
        started = self._clock()
        try:
            images = self.pipeline.decode(x0, len(members), self.pipeline.batch_sizes(shape))
        except Exception as error:  # noqa: BLE001 (the request is told)
            if len(members) > 1:  # one that can't be decoded takes none of its neighbours with it
                for i, member in enumerate(members):
                    self._decode_wanted([member], self.pipeline.engine.take(x0, np.array([i], np.int64)), shape)
            elif members[0][0].ticket.claim():
                self._abandon(members[0][0], error)
            return
        with self._changed:
            for observer in self._observers:
                observer.decoded(self._clock() - started, len(members), {work for work, _ in members})
        for (work, index), image in zip(members, images, strict=True):
            if work.ticket.deliver(index, image):
                self._finish(work)


def _tell_progress(steps_done: Sequence[tuple[Ticket, int]]) -> None:
    for ticket, done in steps_done:
        ticket.advance(done)


def _log_failure(job: "Future[None]") -> None:
    if (error := job.exception()) is not None:
        _log.error("a delivery failed", exc_info=error)
