"""A replica: a scheduler over an engine of its own, which makes the images of manifests that others wrote."""

import asyncio
import time
import traceback
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.actor import ActorHandle

from ddm_rt.bundle import Bundle
from ddm_rt.errors import BundleError, DdmError
from ddm_rt.sample.generation import Cancelled
from ddm_rt.sample.manifest import read_manifest
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.gpus import own_device, own_place
from ddm_rt.serve.http.sse import follow
from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.scheduler import Scheduler
from ddm_rt.serve.scheduling.stats import Stats
from ddm_rt.serve.scheduling.ticket import Event, Failed, Progress
from ddm_rt.serve.settings import ServeSettings

_PROGRESS_S = 0.5  # a message costs more between processes than within one
_IDLE_S = 5.0
_GRACE_S = 5.0
_PORTABLE = (DdmError, DeadlineExceeded, Draining, QueueFull, TooMany, Cancelled)


@dataclass(frozen=True)
class Accepted:
    """The replica has taken the request in."""


Message = Accepted | Event  # Failed without Accepted: the request was not taken in, and nothing was done for it


class Replica:
    """What Ray Serve runs in each replica's process."""

    def __init__(
        self,
        bundle: str,
        bundle_id: str,
        backend: str,
        threads: int,
        settings: ServeSettings,
        keeper: ActorHandle[Any],
    ) -> None:
        """It computes on the GPU that Ray gave it, or else on the CPU. Raises DdmError where this machine has another
        bundle, or an engine unlike the other replicas'.
        """
        opened = Bundle.load(bundle)
        if not opened.is_of(bundle_id):
            raise BundleError(f"{bundle}: bundle_id is {opened.bundle_id[:12]}…; expected {bundle_id[:12]}… here too")
        self.pipeline = Pipeline.load(opened, backend=backend, threads=threads, device=own_device())
        self._check(ray.get(keeper.agree.remote(self.pipeline.made_by)))
        self._scheduler = Scheduler(self.pipeline, settings)
        self._scheduler.start()
        self._name = f"{serve.get_replica_context().replica_id.unique_id} on {own_place()}"

    async def render(
        self, manifest: dict[str, Any], priority: int, deadline_s: float, previews: int = 0
    ) -> AsyncIterator[Message]:
        """The images of `manifest`, each with its place there, as they come, or why not. Who stops asking cancels."""
        due = time.monotonic() + _PROGRESS_S
        try:
            asked = read_manifest(manifest)
            self._check(asked.model_dump())
            wanted: dict[str, Any] = {"priority": priority, "deadline_s": deadline_s, "previews": previews}
            ticket = await asyncio.to_thread(self._scheduler.replay, asked, **wanted)
        except Exception as error:  # noqa: BLE001 (whoever sent it is told)
            yield Failed(portable(error))
            return
        try:
            yield Accepted()
            async for event in follow(ticket, idle_s=_IDLE_S, grace_s=_GRACE_S):
                if isinstance(event, Failed):
                    yield Failed(portable(event.error))
                elif isinstance(event, Progress):
                    if (now := time.monotonic()) >= due:
                        due = now + _PROGRESS_S
                        yield event
                elif event is not None:
                    yield event
        finally:
            ticket.cancel()

    async def stats(self) -> tuple[str, Stats]:
        """The replica's name with its device, and its scheduler's counts."""
        return self._name, self._scheduler.stats()

    def check_health(self) -> None:
        """Raises where Ray Serve had better start another one."""
        if not self._scheduler.alive:
            raise RuntimeError("the sampling loop has ended")

    def __del__(self) -> None:
        if hasattr(self, "_scheduler"):  # it has started
            self._scheduler.close()

    def _check(self, expected: Mapping[str, Any]) -> None:
        """Bytes depend on all of this."""
        for field, here in self.pipeline.made_by.items():
            if expected[field] != here:
                raise DdmError(f"{field} is {here} in this replica; in the others it is {expected[field]}")


def portable(error: Exception) -> Exception:
    """An error that can go to another process, with its traceback as a note."""
    known = error if type(error) in _PORTABLE else RuntimeError(f"{type(error).__name__}: {error}")
    known.add_note("".join(traceback.format_exception(error)))
    return known
