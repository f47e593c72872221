"""The life cycle of requests, whoever samples them: taken in or refused, ended, cancelled, and drained at the end."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Generic, Self, TypeVar

from ddm_rt.errors import DdmError, LedgerError
from ddm_rt.runtime import Shape
from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.pipeline import Pipeline, Prepared
from ddm_rt.sample.request import Extent, Request
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.observer import Observer
from ddm_rt.serve.scheduling.stats import Stats, Tally
from ddm_rt.serve.scheduling.ticket import Failed, Finished, Ticket, preview_steps
from ddm_rt.serve.settings import ServeSettings

_log = logging.getLogger(__name__)

R = TypeVar("R", bound="LiveRequest")


@dataclass(eq=False)
class LiveRequest:
    """A request of a service. Whoever claims its ticket ends it."""

    n: int
    steps: int  # of each image
    shape: Shape  # of the latents
    key: str
    priority: int
    ticket: Ticket
    draws: ExitStack = field(default_factory=ExitStack, kw_only=True)  # closing it says that they are done


class Service(ABC, Generic[R]):
    """Takes requests from any thread, and gives a ticket for each: a scheduler here, or a front of replicas elsewhere.

    What HTTP stands on. A `with` block starts and closes it.
    """

    def __init__(
        self, pipeline: Pipeline, settings: ServeSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` gives the seconds that deadlines are measured by."""
        self.pipeline, self.settings = pipeline, settings
        self._clock = clock
        self._changed = threading.Condition()  # guards all that follows, and what a service has to itself
        self._alive: dict[Ticket, R] = {}  # from when there is room for a request to its last event
        self._tally = Tally()
        self._observers: list[Observer] = [self._tally]
        self._draining = self._closing = False
        self._ledger_failed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def submit(
        self, request: Request, *, key: str = "", priority: int = 0, deadline_s: float | None = None, previews: int = 0
    ) -> Ticket:
        """Takes in a request. Of each image, so many previews are made on the way, or as many as it has steps before
        its last.

        Only so many requests of one `key` are taken at once, save of "". Higher priorities go first. The request fails
        with DeadlineExceeded if it isn't done after `deadline_s` seconds (None: those of the settings).

        Raises DdmError for what `generate` doesn't take and for more images or steps than the settings allow,
        DeadlineExceeded where it can't be done in time however little waits, TooMany or QueueFull where it can't be
        taken in now, and Draining.
        """

    @property
    @abstractmethod
    def alive(self) -> bool:
        """Whether the service's thread runs."""

    @property
    def ready(self) -> bool:
        """Whether requests are taken in, as far as there is room. A ledger that has failed is tried again."""
        if self._ledger_failed:
            with suppress(LedgerError):
                self.pipeline.ledger.check()
                self._ledger_failed = False
        return self.alive and not self._draining and not self._ledger_failed

    @property
    def draining(self) -> bool:
        """Whether the service is told to stop, and finishes what it has taken in."""
        return self._draining

    @abstractmethod
    def stats(self) -> Stats: ...

    def observe(self, observer: Observer) -> None:
        """Tells `observer` too what is done from now on."""
        with self._changed:
            self._observers.append(observer)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes in nothing more, and waits up to `timeout_s` seconds (None: those of the settings) for what was taken
        in. Returns whether all of it has ended.
        """
        with self._changed:
            self._draining = True
            return self._changed.wait_for(self._is_idle, self.settings.drain_s if timeout_s is None else timeout_s)

    @abstractmethod
    def close(self) -> None:
        """Stops. Requests under way fail with Draining, and their draws are given back."""

    @abstractmethod
    def _abandon(self, request: R, error: Exception) -> None:
        """Ends a request that the caller has claimed, without waiting for its last event."""

    @abstractmethod
    def _keep_room(self, request: R) -> None:
        """Raises QueueFull, or DeadlineExceeded where no waiting helps."""

    @abstractmethod
    def _retry_s(self) -> float:
        """Seconds after which a request that was refused may be taken in."""

    def _is_idle(self) -> bool:
        return not self._alive

    def _extent(self, request: Request, deadline_s: float | None) -> Extent:
        """How large the request is. Raises DdmError naming what is out of bounds."""
        extent, settings = request.extent(self.pipeline.bundle), self.settings
        most_images = min(settings.max_images, settings.queue)
        for name, given, most in (("n", extent.n, most_images), ("num_steps", extent.steps, settings.max_steps)):
            if not 1 <= given <= most:
                raise DdmError(f"{name} is {given}; expected 1 to {most}")
        if deadline_s is not None and not deadline_s > 0:
            raise DdmError(f"deadline_s is {deadline_s}; expected more than 0 seconds")
        return extent

    def _ticket(self, size: Extent, deadline_s: float | None, previews: int) -> Ticket:
        seconds = self.settings.deadline_s if deadline_s is None else deadline_s
        ticket = Ticket(size.n, size.n * size.steps, self._clock() + seconds, self._was_cancelled)
        ticket.previews = preview_steps(size.steps, previews)
        return ticket

    @contextmanager
    def _taking_in(self, request: R, preparing: AbstractContextManager[Prepared]) -> Iterator[Prepared]:
        """Keeps room for a request before anything is done for it, draws its codes, and holds the draws from the
        block's end on. Where anything raises, the request is forgotten.
        """
        with self._changed:
            try:
                if self._draining:
                    raise Draining("the server is stopping; it takes in no more requests")
                most = self.settings.per_key
                if request.key and sum(other.key == request.key for other in self._alive.values()) >= most:
                    message = f"{most} requests of this key are under way, as many as one key may have"
                    raise TooMany(message, self._retry_s())
                self._keep_room(request)
                self._alive[request.ticket] = request
                for observer in self._observers:
                    observer.taken(request.ticket)
            except (Draining, QueueFull, DeadlineExceeded) as error:
                for observer in self._observers:
                    observer.refused(error)
                raise
        try:
            with ExitStack() as draws:
                started = time.perf_counter()
                prepared = draws.enter_context(preparing)
                with self._changed:
                    self._count_steps(request, prepared.table.num_steps)
                    for observer in self._observers:
                        observer.drawn(request.ticket, time.perf_counter() - started)
                request.ticket.manifest, request.ticket.target = prepared.manifest, prepared.target
                yield prepared
                with self._changed:
                    if self._closing:
                        raise Draining("the server has stopped")
                    request.draws = draws.pop_all()
        except BaseException as error:
            self._noted(error)
            self._forget(request)
            raise

    def _count_steps(self, request: R, steps: int) -> None:
        """So many steps call the model: with a cache fewer than there was room kept for."""
        request.steps = steps
        request.ticket.count_steps(steps)

    def _noted(self, error: BaseException) -> None:
        """Of an error, what it says of the ledger."""
        if isinstance(error, LedgerError):
            self._ledger_failed = True
            with self._changed:
                for observer in self._observers:
                    observer.ledger_failed()

    def _fail(self, request: R, error: Exception) -> None:
        """A request fails, unless it is settled how it ends."""
        if request.ticket.claim():
            self._abandon(request, error)

    def _fail_all(self, error: Exception) -> None:
        with self._changed:
            requests = list(self._alive.values())
        for request in requests:
            self._fail(request, error)

    def _was_cancelled(self, ticket: Ticket) -> None:
        with self._changed:
            request = self._alive[ticket]
        self._abandon(request, Cancelled("the request was cancelled"))

    def _finish(self, request: R) -> None:
        """Ends a request whose images are all delivered, unless somebody has claimed it."""
        if not request.ticket.claim():
            return
        assert request.ticket.manifest is not None
        try:
            end: Finished | Failed = Finished(request.ticket.manifest.tree())
            with self._settling(request):
                request.draws.close()
        except Exception as error:  # noqa: BLE001 (the ledger can't be written, say; the request is told)
            self._noted(error)
            end = Failed(error)
        self._end(request, end)

    def _give_up(self, request: R, error: Exception) -> None:
        """Gives back the draws of a request that the caller has claimed, and ends it."""
        self._give_back(request, error)
        self._end(request, Failed(error))

    def _give_back(self, request: R, error: Exception) -> None:
        try:
            with self._settling(request), request.draws.pop_all():
                raise error
        except Exception as raised:  # noqa: BLE001 (`error` itself, most of the time)
            if raised is not error:
                _log.error("the draws of a request could not be given back", exc_info=raised)

    def _end(self, request: R, event: Finished | Failed) -> None:
        request.ticket.end(event)
        with self._changed:
            for observer in self._observers:
                observer.ended(request.ticket)
            self._forget(request)

    @contextmanager
    def _settling(self, request: R) -> Iterator[None]:
        """Around what the ledger is told of a request's end."""
        started = time.perf_counter()
        try:
            yield
        finally:
            with self._changed:
                for observer in self._observers:
                    observer.settled(request.ticket, time.perf_counter() - started)

    def _forget(self, request: R) -> None:
        with self._changed:
            for observer in self._observers:
                observer.forgotten(request.ticket)
            self._alive.pop(request.ticket, None)
            self._changed.notify_all()
