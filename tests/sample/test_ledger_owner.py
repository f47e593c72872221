"""Leases that outlive their process: a ledger of the same name goes on with them, and asking twice draws once."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from ledger_processes import STREAM, quota, reference

from ddm_rt.errors import LedgerError
from ddm_rt.sample.balance.ledger import Ledger

NAME = "0123456789abcdef"
# What is killed, with a lease of three draws that has the number 7.
DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from ledger_processes import STREAM, quota
from ddm_rt.sample.balance.ledger import Ledger
ledger = Ledger(sys.argv[1], owner=sys.argv[3])
lease = ledger.lease(STREAM, quota, 3, number=7)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ledger whose user has been killed."""
    path = tmp_path / "counts.ledger"
    line = [sys.executable, "-P", "-c", DIES, str(path), str(Path(__file__).parents[1]), NAME]
    assert subprocess.run(line, check=False).returncode == -9
    return path


def test_the_next_of_the_name_goes_on_with_its_leases(path: Path) -> None:
    with Ledger(path, owner=NAME) as ledger:
        assert ledger.counts(STREAM).leased.total() == 3
        again = ledger.lease(STREAM, quota, 3, number=7)
        assert list(again.draws) == reference(3)
        other = ledger.lease(STREAM, quota, 2, number=8)
        assert list(other.draws) == reference(5)[3:]
        again.commit()
        assert ledger.all_done(STREAM, again.draws)
        assert not ledger.all_done(STREAM, other.draws)
        assert ledger.resume(7) is None
        assert ledger.counts(STREAM).done == Counter(draw.code for draw in reference(3))
    with Ledger(path) as ledger:  # a graceful end gives back what is open
        assert ledger.counts(STREAM).pooled.total() == 2


def test_a_lease_is_resumed_by_its_number(path: Path) -> None:
    with Ledger(path, owner=NAME) as ledger:
        lease = ledger.resume(7)
        assert lease is not None
        assert list(lease.draws) == reference(3)
        lease.release()
        assert ledger.resume(7) is None
        assert ledger.counts(STREAM).pooled.total() == 3


def test_others_take_back_what_nobody_of_the_name_holds(path: Path) -> None:
    with Ledger(path) as other:
        assert list(other.lease(STREAM, quota, 3).draws) == reference(3)
        with Ledger(path, owner=NAME) as ledger:
            assert ledger.resume(7) is None
            assert not ledger.all_done(STREAM, reference(3))


def test_others_leave_alone_what_somebody_of_the_name_holds(path: Path) -> None:
    with Ledger(path, owner=NAME) as ledger, Ledger(path) as other:
        assert ledger.resume(7) is not None
        assert list(other.lease(STREAM, quota, 2).draws) == reference(5)[3:]


def test_a_name_that_was_taken_off_is_entered_again(path: Path) -> None:
    with Ledger(path, owner=NAME) as ledger, Ledger(path) as other:
        lost = ledger.lease(STREAM, quota, 1, number=9)
        for lock in path.parent.glob("*-owner-*"):
            lock.unlink()  # which looks like a death
        assert other.counts(STREAM).leased.total() == 0
        again = ledger.lease(STREAM, quota, 2, number=10)
        assert other.counts(STREAM).leased.total() == 2
        again.commit()
        with pytest.raises(LedgerError, match="taken back"):
            lost.commit()


def test_a_ledger_keeps_its_name_from_lease_to_lease(path: Path) -> None:
    with Ledger(path) as ledger:
        held = ledger.lease(STREAM, quota, 1)
        owner = ledger._owner
        with ledger.lease(STREAM, quota, 1):
            assert ledger._owner is owner
        assert ledger.counts(STREAM).leased.total() == len(held.draws)
