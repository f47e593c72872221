"""Which bundle a ledger's file belongs to: one, by its id, that may change once when the bundle is upgraded."""

import sqlite3
from pathlib import Path

from ddm_rt.bundle import Bundle
from ddm_rt.errors import LedgerError


def check(connection: sqlite3.Connection, ledger: str | Path | None, bundle_id: str) -> None:
    """Raises LedgerError where something was drawn for another bundle."""
    other = connection.execute("SELECT bundle_id FROM streams WHERE bundle_id != ? LIMIT 1", (bundle_id,)).fetchone()
    if other is not None:
        raise LedgerError(
            f"ledger {ledger}: belongs to bundle {other[0][:12]}…; this one is {bundle_id[:12]}…: "
            "name another file, or open the bundle that it belongs to"
        )


def check_former(connection: sqlite3.Connection, ledger: str | Path | None, bundle: Bundle) -> None:
    """Raises LedgerError, with the command that moves it, where the ledger was used before `bundle` was upgraded."""
    if former := _found(connection) & {*bundle.index.former_ids}:
        raise LedgerError(
            f"ledger {ledger}: belongs to bundle {min(former)[:12]}…, from which this one was made; "
            f"move it with `ddm-rt upgrade {bundle.path} --ledger {ledger}`"
        )


def check_upgrade(connection: sqlite3.Connection, ledger: str | Path | None, bundle: Bundle) -> None:
    """Raises LedgerError where the ledger belongs neither to `bundle` nor to a former id of it."""
    if foreign := _found(connection) - {bundle.bundle_id, *bundle.index.former_ids}:
        raise LedgerError(
            f"ledger {ledger}: belongs to bundle {min(foreign)[:12]}…, from which {bundle.path} was not made; "
            "name another ledger, or the bundle that it was used with"
        )


def move(connection: sqlite3.Connection, ledger: str | Path | None, bundle: Bundle) -> int:
    """Every stream becomes one of `bundle`, in the transaction that is open. How many changed."""
    check_upgrade(connection, ledger, bundle)
    update = "UPDATE streams SET bundle_id = ? WHERE bundle_id != ?"
    return connection.execute(update, (bundle.bundle_id, bundle.bundle_id)).rowcount


def _found(connection: sqlite3.Connection) -> set[str]:
    return {bundle_id for (bundle_id,) in connection.execute("SELECT DISTINCT bundle_id FROM streams")}
