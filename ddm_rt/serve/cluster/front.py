"""What stands behind the HTTP interface where the engines are elsewhere: it draws codes, and replicas make the images.

A request's seed and codes are fixed here before it is sent: a manifest goes to a replica, and images come back. Where
the replica dies, what is missing goes to another one. So a lost replica costs time, and neither bytes nor balance.
"""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError, RaySystemError, WorkerCrashedError
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.manifest import Manifest
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.cluster.replica import Accepted, Message
from ddm_rt.serve.scheduling import bounds
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.settings import ServeSettings
from ddm_rt.serve.scheduling.stats import Stats, Tally, over_replicas
from ddm_rt.serve.scheduling.ticket import Failed, Finished, ImageReady, Progress, State, Ticket

_REASONS = {Draining: "draining", TooMany: "key", QueueFull: "queue", DeadlineExceeded: "deadline"}
_LOST = (RayActorError, WorkerCrashedError, ObjectLostError, RaySystemError, ReplicaUnavailableError)
_LOSSES = 4  # replicas that one request may lose: it may be what kills them
_REFUSALS = 3  # replicas that are asked before a request is refused
_RETRY_S = 1.0
_GRACE_S = 5.0  # past the deadline, for a replica to say so
_WATCH_S = 1.0
_STATS_S = 2.0
_THREADS = 16

_log = logging.getLogger(__name__)


class _Lost(Exception):
    """Its replica is no more, or stops; another one may do it."""


@dataclass(eq=False)
class _Errand:
    """A request on its way."""

    n: int
    steps: int
    key: str
    priority: int
    ticket: Ticket
    draws: ExitStack = field(default_factory=ExitStack)  # closing it says that they are done
    taken: "Future[None]" = field(default_factory=Future)  # by a replica, for the first time
    delivered: set[int] = field(default_factory=set)
    losses: int = 0
    refusals: int = 0
    task: "asyncio.Task[None] | None" = None

    @property
    def manifest(self) -> Manifest:
        assert self.ticket.manifest is not None
        return self.ticket.manifest


class Front:
    """A `serve.scheduling.service.Service` over replicas."""

    def __init__(
        self,
        pipeline: Pipeline,
        handle: "DeploymentHandle[Any]",
        settings: ServeSettings,
        most_replicas: int,
        count_replicas: Callable[[], int],
    ) -> None:
        """`pipeline` prepares requests, and samples nothing. `settings` are those of one replica, but for `per_key` and
        `drain_s`. `count_replicas` says how many are there; it may take long.
        """
        self.pipeline, self.settings = pipeline, settings
        self._handle, self._count_replicas = handle, count_replicas
        self._most_images = most_replicas * (settings.slots + settings.queue)
        self._stream = handle.options(stream=True)
        self._changed = threading.Condition()  # guards all that follows
        self._errands: dict[Ticket, _Errand] = {}
        self._keys: Counter[str] = Counter()
        self._images = 0  # of requests under way
        self._tally = Tally()
        self._seen: dict[str, Stats] = {}  # the latest of each replica there ever was
        self._draining = self._closing = False
        self._replicas = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._pool = ThreadPoolExecutor(_THREADS, "front")  # for what waits for the ledger

    def start(self) -> None:
        self._replicas = self._count_replicas()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def submit(self, request: Request, *, key: str = "", priority: int = 0, deadline_s: float | None = None) -> Ticket:
        """Takes in a request, as `serve.scheduling.scheduler.Scheduler.submit` does, once a replica has taken it in.

        Where there is none for the moment, it waits for one up to the request's deadline.
        """
        deadline_s = self.settings.deadline_s if deadline_s is None else deadline_s
        size = bounds.check(request.extent(self.pipeline.bundle), deadline_s, self.settings)
        ticket = Ticket(size.n, size.n * size.steps, time.monotonic() + deadline_s, self._was_cancelled)
        errand = _Errand(size.n, size.steps, key, priority, ticket)
        self._enter(errand)
        try:
            with ExitStack() as draws:
                ticket.manifest = draws.enter_context(self.pipeline.prepare(request)).manifest
                with self._changed:
                    if self._closing:
                        raise Draining("the server has stopped")
                    errand.draws = draws.pop_all()
        except BaseException:
            self._forget(errand)
            raise
        asyncio.run_coroutine_threadsafe(self._carry(errand), self._loop)
        errand.taken.result()
        return ticket

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        """Whether requests are taken in: there is a replica."""
        return self.alive and not self._draining and self._replicas > 0

    def stats(self) -> Stats:
        """Those of the replicas, summed; what ended how is counted here, where no request is counted twice."""
        here: dict[str, Stats] = {}
        try:
            here.update(self._handle.broadcast("stats").results(timeout_s=_STATS_S))
        except (RayError, RayServeException, TimeoutError) as error:  # one of them has just died, say
            _log.warning("counts of the replicas are not to be had now: %s", error)
        with self._changed:
            self._seen |= here
            return over_replicas(self._tally, len(self._errands), list(here.values()), list(self._seen.values()))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Takes in nothing more, and waits for what was taken in; see `serve.scheduling.scheduler.Scheduler.drain`."""
        with self._changed:
            self._draining = True
            return self._changed.wait_for(
                lambda: not self._errands, self.settings.drain_s if timeout_s is None else timeout_s
            )

    def close(self) -> None:
        """Stops. Requests under way fail with Draining, and their draws are given back."""
        with self._changed:
            if self._closing:
                return
            self._draining = self._closing = True
            errands = list(self._errands.values())
        for errand in errands:
            if errand.ticket.claim():
                self._abandon(errand, Draining("the server has stopped"), State.FAILED)
        self._pool.shutdown()
        if self._thread.ident is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    self._loop.run_until_complete(task)
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    async def _watch(self) -> None:
        while True:
            try:
                self._replicas = await asyncio.to_thread(self._count_replicas)
            except (RayError, RayServeException) as error:
                self._replicas = 0
                _log.warning("the replicas are not to be seen: %s", error)
            await asyncio.sleep(_WATCH_S)

    def _enter(self, errand: _Errand) -> None:
        """Keeps room for a request before anything is done for it."""
        settings = self.settings
        with self._changed:
            try:
                if self._draining:
                    raise Draining("the server is stopping; it takes in no more requests")
                if errand.key and self._keys[errand.key] >= settings.per_key:
                    raise TooMany(f"{settings.per_key} requests of this key are under way, as many as one may have", 1)
                if self._images + errand.n > self._most_images:
                    raise QueueFull(f"{self._images} images are under way; at most {self._most_images} may be", 1)
            except (Draining, QueueFull) as error:
                self._tally.rejected[_REASONS[type(error)]] += 1
                raise
            self._errands[errand.ticket] = errand
            self._keys[errand.key] += 1
            self._images += errand.n

    def _forget(self, errand: _Errand) -> None:
        with self._changed:
            if self._errands.pop(errand.ticket, None) is None:
                return
            self._keys -= Counter({errand.key: 1})
            self._images -= errand.n
            self._changed.notify_all()

    async def _carry(self, errand: _Errand) -> None:
        """From replica to replica, until the request has ended."""
        errand.task = asyncio.current_task()
        while not errand.ticket.claimed:
            error = await self._send(errand)
            if error is None:
                await self._loop.run_in_executor(self._pool, self._finish, errand)
                return
            pause_s = self._pause_s(errand, error)
            if pause_s is None:
                if errand.ticket.claim():
                    await self._loop.run_in_executor(self._pool, self._fail, errand, error, State.FAILED)
                return
            await asyncio.sleep(pause_s)

    async def _send(self, errand: _Errand) -> Exception | None:
        """One replica does what is missing. Returns why it has not; None where all images are there."""
        manifest, ticket = errand.manifest, errand.ticket
        missing = [i for i in range(errand.n) if i not in errand.delivered]
        left_s = ticket.deadline - time.monotonic()
        if not missing:
            return None
        if left_s <= 0:
            return DeadlineExceeded("the request was not done by its deadline")
        part = manifest.model_copy(update={"images": tuple(manifest.images[i] for i in missing)})
        before = len(errand.delivered) * errand.steps
        messages, ended = None, False
        try:
            messages = self._stream.render.remote(part.tree(), errand.priority, left_s)
            async with asyncio.timeout(left_s + _GRACE_S):
                async for message in messages:
                    ended = isinstance(message, Finished)
                    if (error := self._hear(errand, message, missing, before)) is not None:
                        return error
            return None if ended else _Lost("a replica's answer broke off")
        except TimeoutError:
            return DeadlineExceeded("the request was not done by its deadline")
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            return _Lost("a replica cancelled a request")
        except _LOST as error:
            return _Lost(str(error))
        except Exception as error:  # noqa: BLE001 (the request is told)
            return error
        finally:
            if messages is not None and not ended:
                await self._loop.run_in_executor(None, _cancel, messages)

    def _hear(self, errand: _Errand, message: Message, missing: list[int], before: int) -> Exception | None:
        """Returns why the replica doesn't go on."""
        if isinstance(message, Accepted):
            with suppress(InvalidStateError):
                errand.taken.set_result(None)
            errand.ticket.start()
        elif isinstance(message, Progress):
            errand.ticket.advance(before + message.steps_done)
        elif isinstance(message, ImageReady):
            index = missing[message.index]
            errand.delivered.add(index)
            errand.ticket.deliver(index, message.image)
        elif not isinstance(message, Finished):
            return message.error
        return None

    def _pause_s(self, errand: _Errand, error: Exception) -> float | None:
        """Seconds after which the request is sent again; None where it isn't."""
        if isinstance(error, _Lost | Draining):
            errand.losses += 1
            _log.warning("a request lost its replica (%d of %d): %s", errand.losses, _LOSSES, error)
            return 0.0 if errand.losses < _LOSSES else None
        if isinstance(error, QueueFull):
            if errand.taken.done():  # by a replica that is no more
                return min(error.retry_after_s, _RETRY_S)
            errand.refusals += 1
            return 0.0 if errand.refusals < min(_REFUSALS, self._replicas) else None
        return None

    # What follows waits for the ledger.

    def _finish(self, errand: _Errand) -> None:
        """Every image is there."""
        ticket = errand.ticket
        if not ticket.claim():
            return
        try:
            tree = errand.manifest.tree()
            errand.draws.close()
        except Exception as error:  # noqa: BLE001 (the ledger can't be reached, say; the request is told)
            ticket.end(Failed(error), State.FAILED)
        else:
            ticket.end(Finished(tree), State.FINISHED)
        self._has_ended(errand)

    def _fail(self, errand: _Errand, error: Exception, state: State) -> None:
        """Ends a request that the caller has claimed."""
        try:
            with errand.draws.pop_all():
                raise error
        except Exception as raised:  # noqa: BLE001 (`error` itself, most of the time)
            if raised is not error:
                _log.error("the draws of a request could not be given back", exc_info=raised)
        try:
            errand.taken.set_exception(error)
        except InvalidStateError:
            errand.ticket.end(Failed(error), state)
            self._has_ended(errand)
        else:  # it never was taken in
            with self._changed:
                self._tally.rejected[_REASONS.get(type(error), "failure")] += 1
            self._forget(errand)

    def _has_ended(self, errand: _Errand) -> None:
        state, manifest = errand.ticket.state, errand.manifest
        with self._changed:
            self._tally.ended[state] += 1
            if state is State.FINISHED:
                self._tally.images += errand.n
                self._tally.assign(manifest.request.scope, Counter(image.top_code for image in manifest.images))
        self._forget(errand)

    def _was_cancelled(self, ticket: Ticket) -> None:
        with self._changed:
            errand = self._errands[ticket]
        self._abandon(errand, Cancelled("the request was cancelled"), State.CANCELLED)

    def _abandon(self, errand: _Errand, error: Exception, state: State) -> None:
        """Of a request that the caller has claimed."""
        if errand.task is not None:
            self._loop.call_soon_threadsafe(errand.task.cancel)
        self._pool.submit(self._fail, errand, error, state)


def _cancel(messages: Any) -> None:
    with suppress(RayError, RayServeException):  # the replica is gone, or has done it
        messages.cancel()
