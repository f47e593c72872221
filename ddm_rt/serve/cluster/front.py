"""The front of several replicas: it draws the codes of requests, and replicas make their images.

A request's seed and codes are fixed here before it is sent: a manifest goes to a replica, and images come back. Where
the replica dies, what is missing goes to another one. So a lost replica costs time, and neither bytes nor balance.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError, RayError, RaySystemError, WorkerCrashedError
from ray.serve.exceptions import RayServeException, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.serve.cluster.replica import Accepted, Message
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull
from ddm_rt.serve.scheduling.service import LiveRequest, Service
from ddm_rt.serve.scheduling.stats import Stats, over_replicas
from ddm_rt.serve.scheduling.ticket import Failed, Finished, ImageReady, Preview, Progress, Ticket
from ddm_rt.serve.settings import ServeSettings

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
    """A request's replica is no more, or stops; another one may make the images."""


@dataclass(eq=False)
class _RemoteRequest(LiveRequest):
    """A request whose images replicas make."""

    taken: "Future[None]" = field(default_factory=Future)  # by a replica, for the first time
    losses: int = 0
    refusals: int = 0
    carrying: "Future[None] | None" = None


class Front(Service[_RemoteRequest]):
    """Draws the codes of requests, and has replicas make their images."""

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
        super().__init__(pipeline, settings)
        self._most_images = most_replicas * (settings.slots + settings.queue)
        self._handle, self._count_replicas = handle, count_replicas
        self._stream = handle.options(stream=True)
        self._seen: dict[str, Stats] = {}  # the latest of each replica there ever was
        self._replicas = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="front", daemon=True)
        self._pool = ThreadPoolExecutor(_THREADS, "front")  # for what waits for the ledger

    def start(self) -> None:
        self._replicas = self._count_replicas()
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._watch(), self._loop)

    def submit(
        self, request: Request, *, key: str = "", priority: int = 0, deadline_s: float | None = None, previews: int = 0
    ) -> Ticket:
        """Takes in a request once a replica has taken it in. Where there is no replica for the moment, the request
        waits for one up to its deadline.
        """
        size = self._extent(request, deadline_s)
        sent = _RemoteRequest(*size, key, priority, self._ticket(size, deadline_s, previews))
        with self._taking_in(sent, self.pipeline.prepare(request)):
            pass
        sent.carrying = asyncio.run_coroutine_threadsafe(self._carry(sent), self._loop)
        sent.taken.result()
        return sent.ticket

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def ready(self) -> bool:
        return super().ready and self._replicas > 0

    def stats(self) -> Stats:
        """The counts of the replicas, summed; requests are counted here, where none is counted twice."""
        here: dict[str, Stats] = {}
        try:
            here.update(self._handle.broadcast("stats").results(timeout_s=_STATS_S))
        except (RayError, RayServeException, TimeoutError) as error:  # one of them has just died, say
            _log.warning("counts of the replicas are not to be had now: %s", error)
        with self._changed:
            for name in sorted(here.keys() - self._seen.keys()):
                _log.info("replica %s", name)
            self._seen |= here
            requests = len(self._alive)
            return over_replicas(self._tally, requests, list(here.values()), list(self._seen.values()))

    def close(self) -> None:
        with self._changed:
            if self._closing:
                return
            self._draining = self._closing = True
        self._fail_all(Draining("the server has stopped"))
        self._pool.shutdown()
        if self._thread.ident is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _keep_room(self, request: _RemoteRequest) -> None:
        images = sum(other.n for other in self._alive.values())
        if images + request.n > self._most_images:
            raise QueueFull(f"{images} images are under way; at most {self._most_images} may be", self._retry_s())

    def _retry_s(self) -> float:
        return _RETRY_S

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop):  # at its end it cancels what still runs
            self._loop.run_forever()

    async def _watch(self) -> None:
        named = 0
        while True:
            try:
                self._replicas = await asyncio.to_thread(self._count_replicas)
                if self._replicas != named:
                    named = self._replicas
                    await asyncio.to_thread(self.stats)  # which names the new ones
            except (RayError, RayServeException) as error:
                self._replicas = 0
                _log.warning("the replicas are not to be seen: %s", error)
            await asyncio.sleep(_WATCH_S)

    async def _carry(self, request: _RemoteRequest) -> None:
        """Sends a request from replica to replica, until it has ended."""
        while not request.ticket.claimed:
            error = await self._send(request)
            if error is None:
                await self._loop.run_in_executor(self._pool, self._finish, request)
                return
            pause_s = self._pause_s(request, error)
            if pause_s is None:
                self._fail(request, error)
                return
            await asyncio.sleep(pause_s)

    async def _send(self, request: _RemoteRequest) -> Exception | None:
        """Has one replica make the missing images. Returns why it has not; None where all images are there."""
        manifest, ticket = request.ticket.manifest, request.ticket
        assert manifest is not None
        missing = [i for i in range(request.n) if i not in ticket.ready]
        left_s = ticket.deadline - time.monotonic()
        if not missing:
            return None
        if left_s <= 0:
            return DeadlineExceeded("the request was not done by its deadline")
        part = manifest.model_copy(update={"images": tuple(manifest.images[i] for i in missing)})
        before = len(ticket.ready) * request.steps
        messages, ended = None, False
        try:
            messages = self._stream.render.remote(part.tree(), request.priority, left_s, len(ticket.previews))
            async with asyncio.timeout(left_s + _GRACE_S):
                async for message in messages:
                    ended = isinstance(message, Finished)
                    if (error := self._hear(request, message, missing, before)) is not None:
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

    def _hear(self, request: _RemoteRequest, message: Message, missing: list[int], before: int) -> Exception | None:
        """Passes a replica's message on to the ticket. Returns why the replica doesn't go on."""
        if isinstance(message, Accepted):
            with suppress(InvalidStateError):
                request.taken.set_result(None)
        elif isinstance(message, Progress):
            request.ticket.advance(before + message.steps_done)
        elif isinstance(message, Preview):
            request.ticket.preview(missing[message.index], message.image)
        elif isinstance(message, ImageReady):
            request.ticket.deliver(missing[message.index], message.image)
        elif not isinstance(message, Finished):
            return message.error
        return None

    def _pause_s(self, request: _RemoteRequest, error: Exception) -> float | None:
        """Seconds after which the request is sent again; None where it isn't."""
        if isinstance(error, _Lost | Draining):
            request.losses += 1
            _log.warning("a request lost its replica (%d of %d): %s", request.losses, _LOSSES, error)
            return 0.0 if request.losses < _LOSSES else None
        if isinstance(error, QueueFull):
            if request.taken.done():  # by a replica that is no more
                return min(error.retry_after_s, _RETRY_S)
            request.refusals += 1
            return 0.0 if request.refusals < min(_REFUSALS, self._replicas) else None
        return None

    def _abandon(self, request: _RemoteRequest, error: Exception) -> None:
        if request.carrying is not None:
            request.carrying.cancel()
        self._pool.submit(self._give_up, request, error)

    def _give_up(self, request: _RemoteRequest, error: Exception) -> None:
        self._give_back(request, error)
        try:
            request.taken.set_exception(error)
        except InvalidStateError:
            self._end(request, Failed(error))
        else:  # no replica has taken it in
            with self._changed:
                for observer in self._observers:
                    observer.refused(error)
                self._forget(request)


def _cancel(messages: Any) -> None:
    with suppress(RayError, RayServeException):  # the replica is gone, or has done it
        messages.cancel()
