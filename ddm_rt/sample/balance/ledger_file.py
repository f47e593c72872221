"""The ledger's file: how it is made, opened and refused; and which of the processes that use it are alive.

A process that draws holds a lock on a file of its own beside the ledger. The system ends the lock with the process,
however that ends, so nothing here depends on clocks, process ids or heartbeats.
"""

import errno
import os
import secrets
import sqlite3
import tempfile
import weakref
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ddm_rt.errors import LedgerError
from ddm_rt.files import lock

if TYPE_CHECKING:
    from ddm_rt.sample.balance.ledger import Ledger

_APPLICATION_ID = 0x44444D31  # "DDM1": an SQLite file with another one is no ledger
_VERSION = 1
_ROOM = 2**18  # bytes
# A transaction writes a few whole pages: small ones, copied back from the WAL when that has 4 MiB, make it quick.
_PAGE_BYTES = 1024
_WAL_PAGES = 4096
_SCHEMA = f"""
PRAGMA page_size = {_PAGE_BYTES};
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {_VERSION};
CREATE TABLE streams (
    number INTEGER PRIMARY KEY,
    bundle_id TEXT NOT NULL,
    scope TEXT NOT NULL,
    target TEXT NOT NULL,
    calibration_id TEXT NOT NULL,  -- '' for none
    counts TEXT NOT NULL,  -- JSON: for each code, how many positions were handed out at least once
    UNIQUE (bundle_id, scope, target, calibration_id)
);
CREATE TABLE draws (  -- handed out and not done: leased by an owner, or in the pool
    stream INTEGER NOT NULL REFERENCES streams,
    position INTEGER NOT NULL,
    code INTEGER NOT NULL,
    owner TEXT,  -- NULL in the pool
    lease INTEGER,
    PRIMARY KEY (stream, position)
) WITHOUT ROWID;
CREATE INDEX draws_of_leases ON draws (owner, lease, stream, position);
CREATE TABLE owners (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""


def resolved(path: Path) -> Path:
    """Where the ledger lies, without links. Raises LedgerError where they, or the process's directory, lead nowhere."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # Python before 3.13 raises a RuntimeError for links in a circle
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.ELOOP)
        raise LedgerError(f"ledger {path}: cannot be made or opened ({reason})") from error


def open_ledger(path: Path | None, name: str, fsync: bool, timeout_s: float) -> sqlite3.Connection:
    """A connection to the ledger at `path`, which is made where there is none, or to one in memory.

    `path` is absolute; `name` is the ledger's in messages. Raises LedgerError for a file that can't be used, which is
    left as it is.
    """
    if path is None:
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        connection.executescript(_SCHEMA)
        return connection
    try:
        if not path.exists():
            _create(path)
        # "rw" never creates: a file that is moved away meanwhile is no reason to begin at zero.
        uri = f"{path.as_uri()}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False)
        try:
            _check(connection, path, name)
            connection.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_WAL_PAGES}")
        except BaseException:
            connection.close()
            raise
    except sqlite3.Error as error:
        raise explain(error, name, timeout_s) from error
    except OSError as error:
        raise LedgerError(f"{name}: cannot be made or opened ({error.strerror})") from error
    return connection


def touch(connection: sqlite3.Connection, path: Path | None, name: str) -> None:
    """Write to the file, and change nothing. Raises LedgerError where the disk has no room for some requests' draws."""
    connection.execute(f"PRAGMA user_version = {_VERSION}")
    if path is not None:
        try:
            with tempfile.TemporaryFile(dir=path.parent) as file:
                file.write(bytes(_ROOM))
        except OSError as error:
            raise LedgerError(f"{name}: cannot be written ({error.strerror})") from error


def _create(path: Path) -> None:
    """An empty ledger under another name, then renamed: a process that is killed leaves none half-made.

    One process at a time does it, by a lock on the directory, and removes what one before it may have left.
    """
    folder = lock(path.parent)
    try:
        if path.exists():
            return
        new = path.with_name(f".{path.name}.new")
        for suffix in ("", "-journal", "-wal", "-shm"):
            new.with_name(new.name + suffix).unlink(missing_ok=True)
        with closing(sqlite3.connect(new)) as connection:
            connection.executescript(f"PRAGMA synchronous = OFF; {_SCHEMA}")
            connection.execute("PRAGMA journal_mode = WAL")
        with new.open("rb") as file:
            os.fsync(file.fileno())
        new.rename(path)
        os.fsync(folder)
    finally:
        os.close(folder)


def _check(connection: sqlite3.Connection, path: Path, name: str) -> None:
    """Raises LedgerError for an SQLite file that is damaged, no ledger or of another version."""
    if path.stat().st_size == 0:
        raise LedgerError(f"{name}: empty; expected a ledger, or no file, for a new one")
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != _APPLICATION_ID:
        raise LedgerError(f"{name}: an SQLite file, but no ledger; name another file")
    if version != _VERSION:
        raise LedgerError(f"{name}: of version {version}; this program reads {_VERSION}")
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise LedgerError(f"{name}: damaged ({' '.join(verdict.split())}); restore a copy, or name another file")


def explain(error: sqlite3.Error, ledger: str, timeout_s: float) -> LedgerError:
    """What SQLite's error means to the user."""
    primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerError(f"{ledger}: locked by another process for more than {timeout_s:g} s; nothing was changed")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LedgerError(f"{ledger}: damaged, or no ledger ({error}); restore a copy, or name another file")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return LedgerError(f"{ledger}: cannot be written ({error}); a ledger must be, and its directory too")
    return LedgerError(f"{ledger}: {error}; nothing was changed")


class Owner:
    """A process's name in a ledger, and the lock that shows it alive."""

    def __init__(self, connection: sqlite3.Connection, ledger: Path, name: str | None = None) -> None:
        """Enters a new name, in the transaction in which the lock is made: nobody sees one without the other.

        With `name` it takes the place of an owner of that name, if there was one, and waits until its process is gone.
        """
        import fcntl

        self.name = secrets.token_hex(8) if name is None else name
        path = _lock_file(ledger, self.name)
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_EXCL if name is None else 0), 0o644)
        self.unlock = weakref.finalize(self, _unlock, self._handle, path)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        connection.execute("INSERT OR IGNORE INTO owners VALUES (?)", (self.name,))
        _remove_strays(connection, ledger)

    def registered(self, connection: sqlite3.Connection) -> bool:
        """Whether the name still stands: someone may have deleted the lock file, which looks like a death."""
        return connection.execute("SELECT 1 FROM owners WHERE name = ?", (self.name,)).fetchone() is not None

    def forget(self) -> None:
        """In a forked child: let the copy of the lock go, which stays with the parent."""
        if self.unlock.detach() is not None:
            os.close(self._handle)


def _unlock(handle: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(handle)


def _remove_strays(connection: sqlite3.Connection, ledger: Path) -> None:
    """Lock files of processes that were killed before their names were entered."""
    names = {name for (name,) in connection.execute("SELECT name FROM owners")}
    prefix = _lock_file(ledger, "").name
    for path in ledger.parent.iterdir():
        if path.name.startswith(prefix) and path.name.removeprefix(prefix) not in names and not _is_locked(path):
            path.unlink(missing_ok=True)


def take_from_dead(connection: sqlite3.Connection, ledger: Path, own: str | None) -> None:
    """The draws of owners that are no longer alive go to the pool."""
    for (name,) in connection.execute("SELECT name FROM owners").fetchall():
        path = _lock_file(ledger, name)
        if name != own and not _is_locked(path):
            take_back(connection, name)
            path.unlink(missing_ok=True)


def take_back(connection: sqlite3.Connection, name: str) -> None:
    """Take an owner's name off; draws that it still holds go to the pool."""
    connection.execute("UPDATE draws SET owner = NULL, lease = NULL WHERE owner = ?", (name,))
    connection.execute("DELETE FROM owners WHERE name = ?", (name,))


def _lock_file(ledger: Path, name: str) -> Path:
    return ledger.with_name(f"{ledger.name}-owner-{name}")


def _is_locked(path: Path) -> bool:
    try:
        os.close(lock(path, wait=False))
    except (FileNotFoundError, BlockingIOError) as error:
        return isinstance(error, BlockingIOError)
    return False


# A child process that is forked has a copy of the connection, which it must not use, and of the owner's lock, which it
# must not keep when the parent dies. No transaction may be under way while it is copied.

ledgers: "weakref.WeakSet[Ledger]" = weakref.WeakSet()
_held: "list[Ledger]" = []


def _before_fork() -> None:
    for ledger in list(ledgers):
        ledger._mutex.acquire()
        _held.append(ledger)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop()._mutex.release()


def _after_fork_in_child() -> None:
    for ledger in _held:
        if ledger._owner is not None:
            ledger._owner.forget()
    _after_fork_in_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
