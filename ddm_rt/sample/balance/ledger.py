"""The ledger: how many images of each code a stream of requests has got, over threads, processes and restarts.

A stream hands out positions 0, 1, 2, ... once each, and a quota turns a position into a code (`quota.py`). Draws
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError, LedgerError
from ddm_rt.sample.balance import ledger_file
from ddm_rt.sample.balance.ledger_file import Owner, explain, open_ledger, resolved, take_back, take_from_dead, touch
from ddm_rt.sample.balance.quota import TreeQuota

_CACHED_STREAMS = 256
_IN_MEMORY = "memory"  # the owner of every lease of a ledger without a file
_FIND = "SELECT number, counts FROM streams WHERE bundle_id = ? AND scope = ? AND target = ? AND calibration_id = ?"
_STREAMS = (
    "SELECT bundle_id, scope, target, calibration_id FROM streams WHERE ? IS NULL OR scope = ? ORDER BY number LIMIT ?"
)
_OTHER = "SELECT bundle_id FROM streams WHERE bundle_id != ? LIMIT 1"
_POOL = (
    "SELECT position, code FROM draws WHERE owner IS NULL AND lease IS NULL AND stream = ? ORDER BY position LIMIT ?"
)
_HELD = "SELECT position, code FROM draws WHERE owner = ? AND lease = ? ORDER BY position"


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


class Lease(AbstractContextManager["Lease"]):
    """Draws of one request. Leaving its `with` block gives back what was not committed; so does losing the object."""

    def __init__(self, ledger: "Ledger", key: tuple[str, int], draws: tuple[Draw, ...]) -> None:
        self.draws = draws
        self._ledger, self._key = ledger, key
        # A finaliser runs wherever Python collects garbage, maybe inside a transaction: it only leaves a note.
        self._lost = weakref.finalize(self, ledger._returned.append, self._key)
        self._lost.atexit = False

    def commit(self) -> None:
        """The draws are done. Raises LedgerError where that can't be recorded; then none of them is."""
        if not self._lost.alive:
            raise RuntimeError("the draws of this lease were committed or given back before")
        self._ledger._commit(self._key, len(self.draws))
        self._lost.detach()

    def release(self) -> None:
        """Give the draws back, unless they were committed. Where the file is locked, the ledger's next use does it."""
        if self._lost.detach() is not None:
            self._ledger._returned.append(self._key)
            with suppress(LedgerError), self._ledger._transaction() as connection:
                self._ledger._give_back(connection)

    def forget(self) -> None:
        """The lease stays open, for another object that has its number."""
        self._lost.detach()

    def __exit__(self, *_: object) -> None:
        self.release()


class Ledger(AbstractContextManager["Ledger"]):
    """Counts per stream, in memory or in the file `path`. Any number of threads may use it.

    Each process opens the file for itself, after a fork. A file belongs to one bundle. `timeout_s` is how long to wait
    for other processes. Raises LedgerError for a file that is damaged, no ledger, of another version, locked for longer
    than that, or can't be written; the file is unchanged then.

    Leases end with their process, unless it has an `owner`, a name that no other process has now: the next ledger of
    that name goes on with them. While there is none, whoever else uses the file ends them.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        fsync: bool = False,
        timeout_s: float = 10.0,
        owner: str | None = None,
    ) -> None:
        self._given, self._name = None if path is None else Path(path), owner
        # A process may change its directory, and a link to a ledger is that ledger: owners' locks lie beside the file.
        self.path = None if self._given is None else resolved(self._given)
        self._fsync, self._timeout_s = fsync, timeout_s
        self._mutex = threading.Lock()
        self._returned: deque[tuple[str, int]] = deque()  # leases to give back
        self._noted = 0  # so many of them are given back in this transaction
        self._quotas: dict[Stream, tuple[str, TreeQuota]] = {}  # with the counts it stands at, as in the file
        self._owner: Owner | None = None
        self._leases = 0
        self._pid = os.getpid()
        self._connection: sqlite3.Connection | None = None
        self._closed = False
        ledger_file.ledgers.add(self)
        if self._exists():  # a file that can't be used is refused now, and made when something is drawn
            with self._transaction():
                pass

    def __str__(self) -> str:
        return f"ledger {'in memory' if self._given is None else self._given}"

    def lease(self, stream: Stream, make_quota: Callable[[], TreeQuota], n: int, *, number: int | None = None) -> Lease:
        """`n` draws: of the pool first, then the next positions. `make_quota` makes the stream's quota, undrawn.

        Asked again with a `number` (0 to 2**63 - 1, of one request alone), it gives the draws that it gave before.
        Raises LedgerError, and leases nothing, where the file can't be used or belongs to another bundle.
        """
        with self._transaction() as connection:
            self._give_back(connection)
            if self.path is not None:
                self._check_bundle(connection, stream.bundle_id)
            owner = self._register(connection)
            if number is None:
                self._leases += 1
                key = (owner, self._leases)
            else:
                key = (owner, number)
                if held := self._held(connection, key):
                    return Lease(self, key, held)
            row, text = self._find(connection, stream)
            draws = [Draw(*found) for found in connection.execute(_POOL, (row, n))]
            connection.executemany(
                "UPDATE draws SET owner = ?, lease = ? WHERE stream = ? AND position = ?",
                [(*key, row, draw.position) for draw in draws],
            )
            if len(draws) < n:
                quota = self._quota(stream, text, make_quota)
                start = sum(quota.counts.values())
                fresh = [Draw(start + i, quota.draw()[0]) for i in range(n - len(draws))]
                connection.executemany(
                    "INSERT INTO draws VALUES (?, ?, ?, ?, ?)", [(row, *draw, *key) for draw in fresh]
                )
                text = json.dumps(quota.counts)
                connection.execute("UPDATE streams SET counts = ? WHERE number = ?", (text, row))
                self._quotas[stream] = text, quota
                draws += fresh
            lease = Lease(self, key, tuple(draws))  # here, so that an interrupt after the commit loses none
        return lease

    def resume(self, number: int) -> Lease | None:
        """The lease of this number, of this process or one before it with the same owner; None where none is open."""
        with self._transaction() as connection:
            key = (self._register(connection), number)
            held = self._held(connection, key)
            return Lease(self, key, held) if held else None

    def all_done(self, stream: Stream, draws: Sequence[Draw]) -> bool:
        """Whether none of these positions, which were handed out, is under way or in the pool."""
        with self._transaction() as connection:
            self._give_back(connection)
            found = connection.execute(_FIND, _columns(stream)).fetchone()
            standing = "SELECT 1 FROM draws WHERE stream = ? AND position = ?"
            return found is not None and not any(
                connection.execute(standing, (found[0], draw.position)).fetchone() for draw in draws
            )

    def check(self) -> None:
        """Make the file where there is none, and write to it. Raises LedgerError where that can't be done."""
        with self._transaction() as connection:
            touch(connection, self.path, str(self))

    def counts(self, stream: Stream, *, settle: bool = True) -> Counts:
        """Where `stream` stands; all zero where nothing was drawn yet. Without `settle`, lost leases count as open."""
        if not self._exists():
            return Counts(Counter(), Counter(), Counter())
        with self._transaction() as connection:
            if settle:
                self._give_back(connection)
            found = connection.execute(_FIND, _columns(stream)).fetchone()
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

    def streams(self, scope: str | None = None, most: int = 1000) -> list[Stream]:
        """The streams that something was drawn from, of one scope or of all; the first `most` of them."""
        if not self._exists():
            return []
        with self._transaction() as connection:
            rows = connection.execute(_STREAMS, (scope, scope, most)).fetchall()
        return [Stream(bundle_id, scope, target, name or None) for bundle_id, scope, target, name in rows]

    def check_bundle(self, bundle: Bundle) -> None:
        """Raises LedgerError where the file belongs to another bundle, or to this one before it was upgraded."""
        if self._exists():
            with self._transaction() as connection:
                if former := _bundles(connection) & {*bundle.index.former_ids}:
                    raise LedgerError(
                        f"{self}: belongs to bundle {min(former)[:12]}…, from which this one was made; "
                        f"move it with `ddm-rt upgrade {bundle.path} --ledger {self._given}`"
                    )
                self._check_bundle(connection, bundle.bundle_id)

    def check_upgrade(self, bundle: Bundle) -> None:
        """Raises LedgerError where there is no such file, or one that belongs neither to this bundle nor to a former id
        of it."""
        with self._upgrading(bundle):
            pass

    def move_to(self, bundle: Bundle) -> int:
        """What was counted for the bundle before it was upgraded counts for it now. How many streams that were.

        Requests under way keep their draws. Raises what `check_upgrade` raises, and changes nothing then.
        """
        with self._upgrading(bundle) as connection:
            update = "UPDATE streams SET bundle_id = ? WHERE bundle_id != ?"
            return connection.execute(update, (bundle.bundle_id, bundle.bundle_id)).rowcount

    def close(self) -> None:
        """Give back the draws of requests under way, and close the file. The ledger is of no use afterwards."""
        if self._owner is not None and not self._closed:
            # Where the file can't be written now, the end of the owner's lock does the same later.
            with suppress(LedgerError), self._transaction() as connection:
                take_back(connection, self._owner.name)
            self._owner.unlock()
        with self._mutex:
            self._closed = True
            if self._connection is not None:
                self._connection.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def _commit(self, key: tuple[str, int], n: int) -> None:
        with self._transaction() as connection:
            done = connection.execute("DELETE FROM draws WHERE owner = ? AND lease = ?", key).rowcount
            if done != n:
                raise LedgerError(
                    f"{self}: {n - done} of {n} draws of this request were taken back; it can't be completed"
                )

    @contextmanager
    def _upgrading(self, bundle: Bundle) -> Iterator[sqlite3.Connection]:
        """A transaction on a file of this bundle or of a former id of it; see `check_upgrade`."""
        if not self._exists():
            raise LedgerError(f"{self}: no such file")
        with self._transaction() as connection:
            if foreign := _bundles(connection) - {bundle.bundle_id, *bundle.index.former_ids}:
                raise LedgerError(
                    f"{self}: belongs to bundle {min(foreign)[:12]}…, from which {bundle.path} was not made; "
                    "name another ledger, or the bundle that it was used with"
                )
            yield connection

    def _check_bundle(self, connection: sqlite3.Connection, bundle_id: str) -> None:
        """Raises LedgerError where something was drawn for another bundle."""
        if (other := connection.execute(_OTHER, (bundle_id,)).fetchone()) is not None:
            raise LedgerError(
                f"{self}: belongs to bundle {other[0][:12]}…; this one is {bundle_id[:12]}…: "
                "name another file, or open the bundle that it belongs to"
            )

    def _exists(self) -> bool:
        return self._connection is not None or (self.path is not None and self.path.exists())

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, one at a time over all threads and processes."""
        with self._mutex:
            if self._closed:
                raise LedgerError(f"{self}: closed")
            if os.getpid() != self._pid:
                raise LedgerError(f"{self}: opened before this process was forked; open it in each process")
            if self._connection is None:
                self._connection = open_ledger(self.path, str(self), self._fsync, self._timeout_s)
            connection = self._connection
            try:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
                    connection.execute("COMMIT")
                except BaseException:
                    self._quotas.clear()  # they may have drawn what is now undone
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                    raise
                for _ in range(self._noted):
                    self._returned.popleft()
            except sqlite3.Error as error:
                raise explain(error, str(self), self._timeout_s) from error
            finally:
                self._noted = 0

    def _give_back(self, connection: sqlite3.Connection) -> None:
        """Draws of lost leases and of dead processes go to the pool."""
        self._noted = len(self._returned)  # other threads may add more
        connection.executemany(
            "UPDATE draws SET owner = NULL, lease = NULL WHERE owner = ? AND lease = ?",
            [self._returned[i] for i in range(self._noted)],
        )
        if self.path is not None:
            take_from_dead(connection, self.path, self._name if self._owner is None else self._owner.name)

    def _register(self, connection: sqlite3.Connection) -> str:
        """This ledger's name in the file; the first lease makes one."""
        if self.path is None:
            return _IN_MEMORY
        if self._owner is None or not self._owner.registered(connection):
            if self._owner is not None:
                self._owner.unlock()  # before the new lock, which may have the same name
            self._owner = Owner(connection, self.path, self._name)
        return self._owner.name

    def _held(self, connection: sqlite3.Connection, key: tuple[str, int]) -> tuple[Draw, ...]:
        """The draws of a lease that is open."""
        return tuple(Draw(*row) for row in connection.execute(_HELD, key))

    def _find(self, connection: sqlite3.Connection, stream: Stream) -> tuple[int, str]:
        """The stream's number and counts; a new stream has no counts yet."""
        found: tuple[int, str] | None = connection.execute(_FIND, _columns(stream)).fetchone()
        if found is not None:
            return found
        added = connection.execute(
            "INSERT INTO streams (bundle_id, scope, target, calibration_id, counts) VALUES (?, ?, ?, ?, '{}')",
            _columns(stream),
        )
        assert added.lastrowid is not None
        return added.lastrowid, "{}"

    def _quota(self, stream: Stream, text: str, make_quota: Callable[[], TreeQuota]) -> TreeQuota:
        """The stream's quota where the counts `text` say; from memory where no other process has drawn meanwhile."""
        if stream in self._quotas and self._quotas[stream][0] == text:
            return self._quotas[stream][1]
        quota, counts = make_quota(), self._parse(stream, text)
        if counts:
            try:
                quota.restore(counts)
            except DdmError as error:
                raise LedgerError(f"{self}: damaged: scope {stream.scope!r}, {error}; restore a copy") from error
        while len(self._quotas) >= _CACHED_STREAMS:
            del self._quotas[next(iter(self._quotas))]
        return quota

    def _parse(self, stream: Stream, text: str) -> dict[int, int]:
        try:
            tree = json.loads(text)
            counts = {int(code): n for code, n in tree.items()}
            whole = all(type(n) is int and n.bit_length() < 64 for pair in counts.items() for n in pair)
            if not whole or [*map(str, counts)] != [*tree]:
                raise ValueError("counts are whole numbers of 64 bits")
        except (ValueError, AttributeError) as error:
            raise LedgerError(f"{self}: damaged: the counts of scope {stream.scope!r} are unreadable") from error
        return counts


def _bundles(connection: sqlite3.Connection) -> set[str]:
    return {bundle_id for (bundle_id,) in connection.execute("SELECT DISTINCT bundle_id FROM streams")}


def _columns(stream: Stream) -> tuple[str, str, str, str]:
    return stream.bundle_id, stream.scope, stream.target, stream.calibration_id or ""
