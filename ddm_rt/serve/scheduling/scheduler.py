"""The engine's loop: images of all requests in one batch, joining and leaving it between steps."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Self

from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.jobs import Prepared
from ddm_rt.sample.manifest import Manifest
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Extent, Request
from ddm_rt.serve.scheduling import bounds
from ddm_rt.serve.scheduling.admission import Book
from ddm_rt.serve.scheduling.delivery import Delivery
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.queue import Work
from ddm_rt.serve.scheduling.running import Flight, Ticked
from ddm_rt.serve.scheduling.settings import ServeSettings
from ddm_rt.serve.scheduling.stats import Stats, Tally
from ddm_rt.serve.scheduling.ticket import State, Ticket

__all__ = ["DeadlineExceeded", "Draining", "QueueFull", "Scheduler", "TooMany"]

_REASONS = {Draining: "draining", TooMany: "key", QueueFull: "queue", DeadlineExceeded: "deadline"}
_log = logging.getLogger(__name__)


class Scheduler:
    """Takes requests from any thread, and samples them all in one of its own.

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
        self.pipeline = pipeline
        self.settings = ServeSettings() if settings is None else settings
        self._clock = clock
        self._changed = threading.Condition()  # guards all that follows, save the flight: that is the loop's alone
        self._book = Book(self.settings)
        self._tally = Tally()
        self._gone: list[Work] = []  # claimed: their images are to leave their slots
        self._occupied = self._undecoded = self._arrivals = 0
        self._draining = self._closing = False
        self._flight = Flight(pipeline, clock)
        self._delivery = Delivery(pipeline, self.settings.decode_threads, self._was_decoded, self._has_ended)
        self._thread = threading.Thread(target=self._run, name="sampling", daemon=True)

    def start(self) -> None:
        """Probes the batch sizes of the bundle's own image size, which takes some calls of the engine, and samples
        from then on.
        """
        assert self.pipeline.buckets
        self._delivery.start()
        self._thread.start()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(self, request: Request, *, key: str = "", priority: int = 0, deadline_s: float | None = None) -> Ticket:
        """Takes in a request.

        Only so many requests of one `key` are taken at once, save of "". Higher priorities go first. The request fails
        with DeadlineExceeded if it isn't done after `deadline_s` seconds (None: those of the settings).

        Raises DdmError for what `generate` doesn't take and for more images or steps than the settings allow,
        DeadlineExceeded where it can't be done in time however little waits, TooMany or QueueFull where it can't be
        taken in now, and Draining.
        """
        deadline_s = self.settings.deadline_s if deadline_s is None else deadline_s
        size = bounds.check(request.extent(self.pipeline.bundle), deadline_s, self.settings)
        return self._take_in(size, self.pipeline.prepare(request), key, priority, deadline_s)

    def replay(self, manifest: Manifest, *, priority: int = 0, deadline_s: float | None = None) -> Ticket:
        """Takes in a request whose codes were drawn elsewhere: the images of `manifest`. The ledger isn't asked.

        Raises what `submit` raises, and DdmError for a manifest that this pipeline can't make.
        """
        deadline_s = self.settings.deadline_s if deadline_s is None else deadline_s
        prepared = self.pipeline.recorded(manifest)
        size = Extent(len(manifest.images), manifest.num_steps, prepared.shape)
        return self._take_in(size, nullcontext(prepared), "", priority, deadline_s)

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken in, as far as there is room."""
        return self.alive and not self._draining

    def stats(self) -> Stats:
        with self._changed:
            tally = self._tally
            median, high = tally.tick_quantiles()
            return Stats(
                requests=len(self._book.alive),
                waiting=self._book.waiting,
                occupied=self._occupied,
                decoding=self._undecoded,
                slots=self.settings.slots,
                queue=self.settings.queue,
                ticks=tally.ticks,
                steps=tally.steps,
                tick_seconds=tally.tick_seconds,
                tick_p50_s=median,
                tick_p95_s=high,
                images=tally.images,
                finished=tally.ended[State.FINISHED],
                failed=tally.ended[State.FAILED],
                cancelled=tally.ended[State.CANCELLED],
                rejected=dict(tally.rejected),
                assigned=dict(tally.assigned),
            )

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes in nothing more, and waits up to `timeout_s` seconds (None: those of the settings) for what was taken
        in. Returns whether all of it has ended, and every slot is free.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(
                lambda: not (self._book.alive or self._occupied or self._undecoded),
                self.settings.drain_s if timeout_s is None else timeout_s,
            )

    def close(self) -> None:
        """Stops. Requests under way fail with Draining, and their draws are given back."""
        with self._changed:
            self._draining = self._closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._end_all(Draining("the server has stopped"))
        self._delivery.close()

    def _take_in(
        self,
        size: Extent,
        preparing: AbstractContextManager[Prepared],
        key: str,
        priority: int,
        deadline_s: float,
    ) -> Ticket:
        work = self._enter(size, key, priority, deadline_s)
        try:
            with ExitStack() as draws:
                work.prepared = draws.enter_context(preparing)
                work.ticket.manifest = work.prepared.manifest
                work.states = self.pipeline.first_states(work.prepared, range(work.n))
                with self._changed:
                    if self._closing:
                        raise Draining("the server has stopped")
                    work.draws = draws.pop_all()
                    self._book.queue(work)
                    self._changed.notify_all()
        except BaseException:
            with self._changed:
                self._book.forget(work)
                self._changed.notify_all()
            raise
        return work.ticket

    def _enter(self, size: Extent, key: str, priority: int, deadline_s: float) -> Work:
        """Keeps room for a request before anything is done for it."""
        now = self._clock()
        ticket = Ticket(size.n, size.n * size.steps, now + deadline_s, self._was_cancelled)
        with self._changed:
            self._arrivals += 1
            work = Work(self._arrivals, *size, key, priority, ticket)
            try:
                if self._draining:
                    raise Draining("the server is stopping; it takes in no more requests")
                self._book.enter(work, now)
            except (Draining, QueueFull, DeadlineExceeded) as error:
                self._tally.rejected[_REASONS[type(error)]] += 1
                raise
        return work

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    soonest = self._book.soonest()
                    self._changed.wait(None if soonest is None else max(soonest - self._clock(), 0.0))
                if self._closing:
                    return
                changes = self._has_changes()
            try:
                if changes:
                    self._leave_and_join()
                if self._flight:
                    self._account(self._flight.tick())
            except Exception as error:  # noqa: BLE001 (one turn's failure must not end all serving)
                _log.exception("a turn of the loop failed; requests under way fail with it")
                self._end_all(error)

    def _has_work(self) -> bool:
        return self._closing or self._occupied > 0 or self._has_changes()

    def _has_changes(self) -> bool:
        """Whether images have to leave or may join: at most turns nothing does. What runs between two steps of the
        engine runs on caches that the engine has filled, and takes twice its time.
        """
        if self._gone or (self._room() > 0 and self._book.queued):
            return True
        soonest = self._book.soonest()
        return soonest is not None and soonest <= self._clock()

    def _leave_and_join(self) -> None:
        """Between two steps."""
        with self._changed:
            now = self._clock()
            gone, self._gone = self._gone, []
            late = self._book.expired(now)
        for work in late:
            self._end(work, DeadlineExceeded("the request was not done by its deadline"))
        self._flight.drop({*gone, *late})
        with self._changed:
            self._occupied = len(self._flight)
            picked = self._book.pick(self._room(), now)
        for work, error in self._flight.take_in(picked):
            self._end(work, error)
        for work, _ in picked:
            work.ticket.start()
        with self._changed:
            self._occupied = len(self._flight)
            self._changed.notify_all()

    def _room(self) -> int:
        """Images that may get a slot. Where decoding doesn't keep up, fewer do."""
        return min(self.settings.slots, 2 * self.settings.slots - self._undecoded) - self._occupied

    def _account(self, ticked: Ticked) -> None:
        with self._changed:
            images = sum(ticked.advanced.values())
            self._tally.ticked(ticked.seconds, images)
            self._undecoded += len(ticked.finished)
            if images:
                self._book.pace.saw(ticked.shape, images, ticked.seconds)
            for work, steps in ticked.advanced.items():
                self._book.advance(work, steps)
            if ticked.finished or ticked.failed is not None:
                self._occupied = len(self._flight)
                self._changed.notify_all()
        told = [(work.ticket, work.steps_done) for work in ticked.advanced if work.ticket.wants_progress]
        if told:
            self._delivery.progress(told)
        if ticked.finished:
            self._delivery.images(ticked.finished, ticked.samples, ticked.shape)
        if ticked.failed is not None:
            self._end(*ticked.failed)

    def _end(self, work: Work, error: Exception) -> None:
        """A request fails, unless it has ended."""
        if work.ticket.claim():
            self._leave(work)
            self._delivery.fail(work, error)

    def _end_all(self, error: Exception) -> None:
        with self._changed:
            works = list(self._book.alive.values())
        for work in works:
            self._end(work, error)

    def _leave(self, work: Work) -> None:
        with self._changed:
            self._gone.append(work)
            self._changed.notify_all()

    # What follows is called by the delivery's threads, and by those that cancel.

    def _was_cancelled(self, ticket: Ticket) -> None:
        with self._changed:
            work = self._book.alive[ticket]
        self._leave(work)
        self._delivery.fail(work, Cancelled("the request was cancelled"), State.CANCELLED)

    def _was_decoded(self, images: int) -> None:
        with self._changed:
            self._undecoded -= images
            self._changed.notify_all()

    def _has_ended(self, work: Work) -> None:
        with self._changed:
            state = work.ticket.state
            self._tally.ended[state] += 1
            if state is not State.FINISHED:
                self._gone.append(work)
            else:
                assert work.prepared is not None
                manifest = work.prepared.manifest
                self._tally.images += work.n
                self._tally.assign(manifest.request.scope, Counter(image.top_code for image in manifest.images))
            self._book.forget(work)
            self._changed.notify_all()
