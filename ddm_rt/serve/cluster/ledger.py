"""One ledger for many processes: a Ray actor owns the file, and other processes ask it.

The actor may die at any moment. Ray starts it again with the same arguments, the same owner's name among them, so that
it finds its open leases in the file; and calls that got no answer are made again, so each of them can be repeated.
"""

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ddm_rt.errors import DdmError, LedgerError
from ddm_rt.sample.balance.ledger import Counts, Draw, Ledger, Stream
from ddm_rt.sample.balance.quota import TreeQuota

_log = logging.getLogger(__name__)


class LedgerKeeper:
    """The actor, which answers one call at a time."""

    def __init__(self, path: Path, fsync: bool, owner: str) -> None:
        self._path, self._fsync, self._owner = path, fsync, owner
        self._ledger: Ledger | None = None
        self._made_by: Mapping[str, Any] | None = None

    def lease(self, number: int, stream: Stream, quota: TreeQuota, n: int) -> tuple[Draw, ...]:
        """Draws for the request `number`: the same ones whenever it is asked."""
        lease = self._opened().lease(stream, lambda: quota, n, number=number)
        lease.forget()  # its number is enough to find it in the file
        return lease.draws

    def commit(self, number: int, stream: Stream, draws: Sequence[Draw]) -> None:
        """The draws are done. Raises LedgerError where they were taken back meanwhile."""
        if (lease := self._opened().resume(number)) is not None:
            lease.commit()
        elif not self._opened().all_done(stream, draws):
            raise LedgerError("the draws of this request were taken back; it can't be completed")

    def release(self, number: int) -> None:
        """The draws are given back, unless they are done."""
        if (lease := self._opened().resume(number)) is not None:
            lease.release()

    def counts(self, stream: Stream) -> Counts:
        return self._opened().counts(stream)

    def streams(self, scope: str | None = None) -> list[Stream]:
        return self._opened().streams(scope)

    def check(self) -> None:
        self._opened().check()

    def agree(self, made_by: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns on what all images are made: what the first replica says."""
        if self._made_by is None:
            self._made_by = made_by
        return self._made_by

    def made_by(self) -> Mapping[str, Any] | None:
        return self._made_by

    def close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()

    def _opened(self) -> Ledger:
        # Not when the actor is made: one that raises then is never started again.
        if self._ledger is None:
            self._ledger = Ledger(self._path, fsync=self._fsync, owner=self._owner)
        return self._ledger


def start_keeper(path: Path, fsync: bool, name: str) -> ActorHandle[Any]:
    """An actor on this machine, where the file is. It, and its leases, end with the process that calls this.

    Raises DdmError where the cluster has one of this name.
    """
    actor = ray.remote(LedgerKeeper).options(
        name=name,
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
    )
    try:
        return actor.remote(path.absolute(), fsync, secrets.token_hex(8))
    except ValueError as error:
        raise DdmError(f"{name} is served in this cluster already; expected one front for each bundle") from error


class SharedLedger:
    """An actor's ledger, for any number of threads; a `sample.balance.assignment.Lender`."""

    def __init__(self, keeper: ActorHandle[Any], timeout_s: float) -> None:
        self._keeper, self._timeout_s = keeper, timeout_s

    @contextmanager
    def lease(self, stream: Stream, make_quota: Callable[[], TreeQuota], n: int) -> "Iterator[SharedLease]":
        """Draws, of which the block's end gives back those that were not committed."""
        number = secrets.randbits(63)
        try:
            draws = self.ask("lease", number, stream, make_quota(), n)
        except DdmError:
            self._keeper.release.remote(number)  # it may have been made, and the answer lost
            raise
        lease = SharedLease(self, number, stream, draws)
        try:
            yield lease
        finally:
            if not lease.done:
                try:
                    self.ask("release", number)
                except LedgerError:
                    _log.exception("draws could not be given back now; they are when the server stops")

    def counts(self, stream: Stream) -> Counts:
        return cast(Counts, self.ask("counts", stream))

    def streams(self, scope: str | None = None) -> list[Stream]:
        return cast(list[Stream], self.ask("streams", scope))

    def check(self) -> None:
        self.ask("check")

    def ask(self, method: str, *arguments: object) -> Any:
        """Asks the actor. Raises what the actor raises, and LedgerError where no answer comes."""
        try:
            return ray.get(getattr(self._keeper, method).remote(*arguments), timeout=self._timeout_s)
        except RayTaskError as error:
            raise error.cause from error
        except GetTimeoutError as error:
            raise LedgerError(f"the ledger's actor has not answered within {self._timeout_s:g} s") from error
        except RayActorError as error:
            raise LedgerError("the ledger's actor has ended") from error


@dataclass
class SharedLease:
    """Draws of one request."""

    ledger: SharedLedger
    number: int
    stream: Stream
    draws: tuple[Draw, ...]
    done: bool = False

    def commit(self) -> None:
        self.ledger.ask("commit", self.number, self.stream, self.draws)
        self.done = True
