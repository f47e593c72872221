"""What a fork must do to the ledgers that are open.

A child process that is forked has a copy of the connection, which it must not use, and of the owner's lock, which it
must not keep when the parent dies. No transaction may be under way while it is copied.
"""

import os
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddm_rt.sample.balance.ledger import Ledger

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
