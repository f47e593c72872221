"""Ledger files that can't be used: one clear error, and nothing in them changes."""

import dataclasses
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import ledger_processes
import pytest
from fake_engine import fake_bundle
from ledger_damage import DAMAGE
from ledger_processes import STREAM, quota, reference, used

from ddm_rt.bundle import Bundle, Former
from ddm_rt.errors import DdmError, LedgerError
from ddm_rt.sample.balance.ledger import Ledger


def former(bundle_id: str, *former_ids: str) -> Bundle:
    known = tuple(Former(bundle_id=each, files={}) for each in former_ids)
    index = fake_bundle().index.model_copy(update={"bundle_id": bundle_id, "former": known})
    return dataclasses.replace(fake_bundle(), index=index)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return used(tmp_path)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_file_that_cannot_be_used_is_named_and_left_alone(path: Path, damage: str) -> None:
    break_it, said = DAMAGE[damage]
    break_it(path)
    before = path.read_bytes() if path.is_file() else b""
    with pytest.raises(DdmError, match=said) as caught:
        Ledger(path).lease(STREAM, quota, 5)  # more than the pool holds, so that the counts are needed
    assert str(path) in str(caught.value)
    assert (path.read_bytes() if path.is_file() else b"") == before


def test_a_file_is_refused_when_it_is_opened(path: Path) -> None:
    path.write_bytes(b"years of work")
    with pytest.raises(DdmError, match="no ledger"):
        Ledger(path)


def test_a_file_is_made_when_something_is_drawn(tmp_path: Path) -> None:
    with Ledger(tmp_path / "counts.ledger") as ledger:
        ledger.check_bundle(former("cd" * 32))
        assert not ledger.counts(STREAM).issued
        assert not list(tmp_path.iterdir())
        ledger.lease(STREAM, quota, 1)
        assert (tmp_path / "counts.ledger").exists()
    with pytest.raises(DdmError, match="No such file or directory"):
        Ledger(tmp_path / "nowhere" / "counts.ledger").lease(STREAM, quota, 1)


def test_a_file_belongs_to_one_bundle(path: Path) -> None:
    before = path.read_bytes()
    other = STREAM._replace(bundle_id="cd" * 32)
    with Ledger(path) as ledger:
        with pytest.raises(DdmError, match=r"belongs to bundle abababababab….*cdcdcdcdcdcd…"):
            ledger.check_bundle(former(other.bundle_id))
        with pytest.raises(DdmError, match="belongs to bundle"):
            ledger.lease(other, quota, 1)
        ledger.check_bundle(former(STREAM.bundle_id))
    assert path.read_bytes() == before
    with Ledger() as ledger:
        for stream in (STREAM, other):
            assert ledger.lease(stream, quota, 1).draws == tuple(reference(1))


@pytest.fixture
def lock(path: Path) -> Iterator[Callable[[], sqlite3.Connection]]:
    """lock() is what another process does that writes for a long time; `rollback` ends it."""
    connections = []

    def begin() -> sqlite3.Connection:
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("BEGIN IMMEDIATE")
        connections.append(connection)
        return connection

    yield begin
    for connection in connections:
        connection.close()


def test_a_locked_file_is_waited_for_and_then_named(path: Path, lock: Callable[[], sqlite3.Connection]) -> None:
    other = lock()
    with pytest.raises(DdmError, match=r"counts\.ledger: locked by another process for more than 0\.05 s"):
        Ledger(path, timeout_s=0.05)
    other.rollback()
    with Ledger(path, timeout_s=0.05) as ledger:
        assert [draw.position for draw in ledger.lease(STREAM, quota, 1).draws] == [8]


def test_nothing_is_lost_where_the_file_is_locked_at_the_end(
    path: Path, lock: Callable[[], sqlite3.Connection]
) -> None:
    with Ledger(path, timeout_s=0.05) as ledger:
        first, second = ledger.lease(STREAM, quota, 2), ledger.lease(STREAM, quota, 2)
        other = lock()
        with pytest.raises(DdmError, match="locked"):
            first.commit()
        first.release()
        second.release()
        other.rollback()
        assert ledger.counts(STREAM).pooled.total() == 4
        held = ledger.lease(STREAM, quota, 4)
        assert {*held.draws} == {*first.draws, *second.draws}
        other = lock()
    other.rollback()
    with Ledger(path) as ledger:
        assert ledger.counts(STREAM).pooled.total() == 4, "closed while it was locked"


@pytest.mark.parametrize(("fsync", "level"), [(False, 1), (True, 2)])
def test_fsync_asks_sqlite_to_flush_each_commit(path: Path, fsync: bool, level: int) -> None:
    with Ledger(path, fsync=fsync) as ledger, ledger._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone() == (level,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


DRAW = """
import sys
from pathlib import Path
from ledger_processes import *
try:
    for _ in range(int(sys.argv[2])):
        Ledger(Path(sys.argv[1])).lease(STREAM, quota, 50)
except ValueError as error:
    print(error)
"""
COUNT = """
import sys
from pathlib import Path
from ledger_processes import *
counts = Ledger(Path(sys.argv[1])).counts(STREAM)
print(counts.done.total(), counts.leased.total(), counts.issued.total() - counts.pooled.total())
"""


def on_a_small_disk(path: Path, options: str, requests: int) -> tuple[str, str]:
    """What draws say where the ledger's file system is mounted with `options`; and the counts once it is as before."""
    disk = path.with_name("disk")
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size=64k tmpfs "$1" && cp "$2" "$1/l" && mount -o "remount,$3" "$1"'
        ' && "$4" -c "$5" "$1/l" "$7" && mount -o remount,rw,size=10m "$1" && "$4" -c "$6" "$1/l"'
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    command += [disk, path, options, sys.executable, DRAW, COUNT, requests]
    environment = os.environ | {"PYTHONPATH": str(Path(ledger_processes.__file__).parent)}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    said, counted = done.stdout.splitlines()
    return said, counted


def test_a_read_only_file_system(path: Path, own_file_system: None) -> None:
    said, counted = on_a_small_disk(path, "ro", 1)
    assert "disk/l: cannot be written" in said
    assert counted == "8 0 8"


def test_a_full_disk(path: Path, own_file_system: None) -> None:
    said, counted = on_a_small_disk(path, "size=64k", 10_000)
    assert "disk/l: " in said
    assert "full" in said
    assert counted == "8 0 8"


def test_a_ledger_from_before_an_upgrade_is_refused_with_the_command_that_moves_it(path: Path) -> None:
    before = path.read_bytes()
    new = former("cd" * 32, STREAM.bundle_id)
    command = f"move it with `ddm-rt upgrade fake-bundle --ledger {path}`"
    with Ledger(path) as ledger, pytest.raises(LedgerError, match=re.escape(command)):
        ledger.check_bundle(new)
    assert path.read_bytes() == before


def test_a_moved_ledger_goes_on_where_it_stood(path: Path) -> None:
    new = former("cd" * 32, "ef" * 32, STREAM.bundle_id)
    with Ledger(path) as ledger:
        under_way = ledger.lease(STREAM, quota, 2)
        counts = ledger.counts(STREAM)
        with Ledger(path) as other:
            assert other.move_to(new) == 1
            assert other.move_to(new) == 0
        under_way.commit()  # a request under way ends as it would have
        with pytest.raises(LedgerError, match="belongs to bundle cdcdcdcdcdcd"):
            ledger.lease(STREAM, quota, 1)
    moved = STREAM._replace(bundle_id=new.bundle_id)
    with Ledger(path) as ledger:
        ledger.check_bundle(new)
        assert ledger.counts(moved).issued == counts.issued
        assert not ledger.counts(STREAM).issued
        issued = counts.issued.total()
        pooled = ledger.counts(moved).pooled.total()
        draws = ledger.lease(moved, quota, pooled + 2).draws
        assert list(draws[pooled:]) == reference(issued + 2)[issued:]


def test_a_ledger_of_another_bundle_is_not_moved(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    with Ledger(path) as ledger, pytest.raises(LedgerError, match="from which fake-bundle was not made"):
        ledger.move_to(former("cd" * 32, "ef" * 32))
    assert path.read_bytes() == before
    with Ledger(tmp_path / "none.ledger") as ledger, pytest.raises(LedgerError, match=r"none\.ledger: no such file"):
        ledger.move_to(former("cd" * 32))
    assert not (tmp_path / "none.ledger").exists()
