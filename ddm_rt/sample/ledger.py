"""The ledger: how many images of each code a stream of requests has got, over threads, processes and restarts.

A stream hands out positions 0, 1, 2, ... once each, and a quota turns a position into a code (`sample.quota`). Draws
are leased: a request either commits all of its draws, and they are done for good, or gives them back. Draws that were
given back, or whose process has died, form the stream's pool, which is handed out before new positions. So the images
handed out, all positions but those p in the pool, are off by less than the quota's bound + p; where p is 0 again,
by the quota's bound.

In memory by default. With a path: an SQLite file in WAL mode. A process that is killed at any moment loses and doubles
nothing that was committed. After a power loss the last commits may be gone, unless `fsync` is set. The file must lie on
a local disk, and be copied with SQLite's own backup: a copy of the main file alone lacks what stands in the WAL.
"""

import json
import os
import sqlite3
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from ddm_rt.errors import DdmError
from ddm_rt.sample.ledger_file import Owner, explain, open_ledger
from ddm_rt.sample.quota import TreeQuota

_CACHED_STREAMS = 256
_IN_MEMORY = "memory"  # the owner of every lease of a ledger without a file


class Stream(NamedTuple):
    """What is counted apart."""

    bundle_id: str
    scope: str
    target: str
    calibration_id: str | None = None


class Draw(NamedTuple):
    position: int  # in the stream, from 0
    code: int


@dataclass(frozen=True)
class Counts:
    """Images per code: positions handed out at least once; of those, in requests under way; and in the pool."""

    issued: Counter[int]
    leased: Counter[int]
    pooled: Counter[int]

    @property
    def done(self) -> Counter[int]:
        return self.issued - self.leased - self.pooled


class Lease:
    """Draws of one request. Leaving its `with` block gives back what was not committed; so does losing the object."""

    def __init__(self, ledger: "Ledger", owner: str, number: int, draws: tuple[Draw, ...]) -> None:
        self.draws = draws
        self._ledger, self._key = ledger, (owner, number)
        # A finaliser runs wherever Python collects garbage, maybe inside a transaction: it only leaves a note.
        self._lost = weakref.finalize(self, ledger._returned.append, self._key)
        self._lost.atexit = False

    def commit(self) -> None:
        """The draws are done. Raises DdmError where that can't be recorded; then none of them is."""
        if self._lost.alive:
            self._ledger._commit(self._key, len(self.draws))
            self._lost.detach()

    def release(self) -> None:
        """Give the draws back, unless they were committed. Where the file is locked, the ledger's next use does it."""
        if self._lost.detach() is not None:
            self._ledger._returned.append(self._key)
            self._ledger._return()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Ledger:
    """Counts per stream, in memory or in the file `path`. Any number of threads may use it.

    Each process opens the file for itself, after a fork. A file belongs to one bundle. `timeout_s` is how long to wait
    for other processes. Raises DdmError for a file that is damaged, no ledger, of another version, locked for longer
    than that, or can't be written; the file is unchanged then.
    """

    def __init__(self, path: str | Path | None = None, *, fsync: bool = False, timeout_s: float = 10.0) -> None:
        self.path = None if path is None else Path(path)
        self._timeout_s = timeout_s
        self._mutex = threading.Lock()
        self._returned: deque[tuple[str, int]] = deque()  # leases to give back
        self._quotas: dict[Stream, tuple[str, TreeQuota]] = {}  # with the counts it stands at
        self._owner: Owner | None = None
        self._leases = 0
        self._pid = os.getpid()
        self._connection = open_ledger(self.path, fsync, timeout_s)
        self._closed = weakref.finalize(self, self._connection.close)
        _ledgers.add(self)

    def lease(self, stream: Stream, make_quota: Callable[[], TreeQuota], n: int) -> Lease:
        """`n` draws: of the pool first, then the next positions. `make_quota` makes the stream's quota, undrawn.

        Raises DdmError, and leases nothing, where the file can't be used or belongs to another bundle.
        """
        with self._transaction() as connection:
            self._give_back(connection)
            self._check_bundle(connection, stream.bundle_id)
            owner = self._register(connection)
            self._leases += 1
            number, text = self._find(connection, stream)
            pooled = [Draw(*row) for row in connection.execute(_POOLED, (number, n))]
            connection.executemany(
                "UPDATE draws SET owner = ?, lease = ? WHERE stream = ? AND position = ?",
                [(owner, self._leases, number, draw.position) for draw in pooled],
            )
            fresh: list[Draw] = []
            if len(pooled) < n:
                quota = self._quota(stream, text, make_quota)
                start = sum(quota.counts.values())
                fresh = [Draw(start + i, quota.draw()[0]) for i in range(n - len(pooled))]
                connection.executemany(
                    "INSERT INTO draws VALUES (?, ?, ?, ?, ?)", [(number, *draw, owner, self._leases) for draw in fresh]
                )
                text = json.dumps(quota.counts)
                connection.execute("UPDATE streams SET counts = ? WHERE stream = ?", (text, number))
                self._quotas[stream] = text, quota
            return Lease(self, owner, self._leases, (*pooled, *fresh))

    def counts(self, stream: Stream) -> Counts:
        """Where `stream` stands; all zero where nothing was drawn yet."""
        with self._transaction() as connection:
            self._give_back(connection)
            found = connection.execute(_FIND, _row(stream)).fetchone()
            if found is None:
                return Counts(Counter(), Counter(), Counter())
            rows = connection.execute(
                "SELECT code, owner IS NULL, count(*) FROM draws WHERE stream = ? GROUP BY 1, 2", found[:1]
            ).fetchall()
            return Counts(
                Counter(self._parse(stream, found[1])),
                Counter({code: n for code, pooled, n in rows if not pooled}),
                Counter({code: n for code, pooled, n in rows if pooled}),
            )

    def check_bundle(self, bundle_id: str) -> None:
        """Raises DdmError where the file belongs to another bundle."""
        with self._transaction() as connection:
            self._check_bundle(connection, bundle_id)

    def close(self) -> None:
        """Give back the draws of requests under way, and close the file. The ledger is of no use afterwards."""
        if self._owner is not None and self._closed.alive:
            # Where the file can't be written now, the lock's end tells the next process to take the draws back.
            with suppress(DdmError), self._transaction() as connection:
                self._owner.retire(connection)
            self._owner.unlock()
        with self._mutex:
            self._closed()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _commit(self, key: tuple[str, int], n: int) -> None:
        with self._transaction() as connection:
            done = connection.execute("DELETE FROM draws WHERE owner = ? AND lease = ?", key).rowcount
            if done != n:
                raise DdmError(f"{self}: {n - done} of {n} draws of this request were taken back; it can't be completed")

    def _return(self) -> None:
        """Bring leases that were given back to the pool, if the file can be written now."""
        with suppress(DdmError), self._transaction() as connection:
            self._give_back(connection)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        """Draws of lost leases and of dead processes go to the pool."""
        pending = len(self._returned)  # others may be added meanwhile
        for key in [self._returned[i] for i in range(pending)]:
            connection.execute("UPDATE draws SET owner = NULL, lease = NULL WHERE owner = ? AND lease = ?", key)
        self._after_commit = pending
        if self.path is not None:
            Owner.bury_dead(connection, self.path, self._owner)

    def _register(self, connection: sqlite3.Connection) -> str:
        """This ledger's name in the file; one is made on the first lease."""
        if self.path is None:
            return _IN_MEMORY
        if self._owner is None or not self._owner.known(connection):
            self._owner = Owner.register(connection, self.path)
        return self._owner.name

    def _check_bundle(self, connection: sqlite3.Connection, bundle_id: str) -> None:
        other = connection.execute("SELECT bundle_id FROM streams WHERE bundle_id != ? LIMIT 1", (bundle_id,)).fetchone()
        if other and self.path is not None:
            raise DdmError(f"{self}: of bundle {other[0][:12]}…; this bundle is {bundle_id[:12]}…: name another file")
