"""Many processes on one ledger, killed at any moment: nothing that was committed is lost or doubled."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import ledger_processes
import pytest
from ledger_processes import LARGEST, STREAM, WRITERS, quota, reference

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.ledger import Draw, Ledger


def pool_of(path: Path) -> set[int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return {position for (position,) in connection.execute("SELECT position FROM draws WHERE owner IS NULL")}


def run(mode: str, path: Path, n: int) -> list[Draw]:
    """The committed draws that the processes logged."""
    log = path.with_name("log")
    command = [sys.executable, ledger_processes.__file__, mode, path, log, n]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ledger_processes.logged(log)


def check_nothing_lost_or_doubled(path: Path, logged: list[Draw], unlogged: int) -> None:
    """Every position is done or in the pool; what was committed is done; at most `unlogged` others are."""
    with Ledger(path) as ledger:
        counts = ledger.counts(STREAM)
        assert not counts.leased, "none of the processes is alive"
    expected = reference(counts.issued.total())
    pool = pool_of(path)
    assert len(set(logged)) == len(logged), "doubled"
    assert set(logged) <= set(expected)
    assert not {draw.position for draw in logged} & pool, "lost"
    assert counts.done == Counter(draw.code for draw in expected if draw.position not in pool)
    assert 0 <= counts.done.total() - len(logged) <= unlogged


def test_processes_share_a_new_ledger(tmp_path: Path) -> None:
    logged = run("race", tmp_path / "counts.ledger", 250)
    check_nothing_lost_or_doubled(tmp_path / "counts.ledger", logged, 0)
    assert [file.name for file in tmp_path.iterdir() if "owner" in file.name] == []


def check_kills(tmp_path: Path, kills: int) -> None:
    logged = run("kill", tmp_path / "counts.ledger", kills)
    assert len(logged) >= kills
    # A writer may die between its commit and the end of its log.
    check_nothing_lost_or_doubled(tmp_path / "counts.ledger", logged, (kills + WRITERS) * LARGEST)
    with Ledger(tmp_path / "counts.ledger") as ledger:
        ledger.lease(STREAM, quota, 1).commit()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["counts.ledger", "log"]


def test_60_kills_of_busy_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, 60)


@pytest.mark.slow(reason="3,000 kills take over a minute where others use the machine too")
def test_3000_kills_of_busy_writers_lose_and_double_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, 3000)


def test_a_kill_while_the_file_is_made_leaves_a_whole_ledger_or_none(tmp_path: Path) -> None:
    run("birth", tmp_path / "counts.ledger", 30)
    for number in range(30):
        with Ledger(tmp_path / f"counts.ledger-{number}") as ledger:
            ledger.lease(STREAM, quota, 1).commit()
            assert not ledger.counts(STREAM).leased
    assert {file.name for file in tmp_path.iterdir()} == {"log", *(f"counts.ledger-{number}" for number in range(30))}


Start = Callable[[str, Path], subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(script, path) runs a script with the names of `ledger_processes`, and ends it with the test."""
    started = []

    def run_script(script: str, path: Path) -> subprocess.Popen[str]:
        names = "import os, sys, time; from pathlib import Path; from ledger_processes import *\n"
        command = [sys.executable, "-c", names + script, str(path)]
        environment = os.environ | {"PYTHONPATH": str(Path(ledger_processes.__file__).parent)}
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment))
        return started[-1]

    yield run_script
    for process in started:
        process.kill()
        process.communicate()


HOLD = """
lease = Ledger(Path(sys.argv[1])).lease(STREAM, quota, 3)
print(*[draw.position for draw in lease.draws], flush=True)
time.sleep(600)
"""


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_draws_return_when_their_process_dies_and_not_before(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "counts.ledger"
    holder = start(HOLD, path)
    assert line(holder) == "0 1 2"
    with Ledger(path) as ledger:
        assert list(ledger.lease(STREAM, quota, 2).draws) == reference(5)[3:]
        assert ledger.counts(STREAM).leased.total() >= 3
        holder.kill()
        holder.wait()
        assert list(ledger.lease(STREAM, quota, 3).draws) == reference(3)


FORK = """
ledger = Ledger(Path(sys.argv[1]))
lease = ledger.lease(STREAM, quota, 3)
if os.fork() == 0:
    try:
        lease.commit()
    except ValueError as error:
        print(os.getpid(), error, flush=True)
time.sleep(600)
"""


def test_a_forked_child_neither_uses_nor_keeps_its_parents_ledger(tmp_path: Path, start: Start) -> None:
    path = tmp_path / "counts.ledger"
    parent = start(FORK, path)
    child, said = line(parent).split(" ", 1)
    try:
        assert "forked" in said
        with Ledger(path) as ledger:
            assert ledger.counts(STREAM).leased.total() == 3, "the parent lives"
            parent.kill()
            parent.wait()
            assert ledger.counts(STREAM).pooled.total() == 3, "the child lives, and holds nothing"
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_request_whose_draws_went_to_another_is_refused(tmp_path: Path) -> None:
    """Someone deletes the file that shows a process alive."""
    path = tmp_path / "counts.ledger"
    with Ledger(path) as one, Ledger(path) as two:
        first = one.lease(STREAM, quota, 3)
        (owner,) = tmp_path.glob("*-owner-*")
        owner.unlink()
        second = two.lease(STREAM, quota, 2)
        assert second.draws == first.draws[:2]
        second.commit()
        with pytest.raises(DdmError, match="3 of 3 draws of this request were taken back"):
            first.commit()
        first.release()
        assert one.lease(STREAM, quota, 1).draws == first.draws[2:]
        assert two.counts(STREAM).done.total() == 2
