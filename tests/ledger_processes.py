"""Processes that use one ledger: forked, so that they start in milliseconds, and killed in the middle of their work.

    python tests/ledger_processes.py race|kill|birth LEDGER LOG N

They log each request's draws once it is committed, as one line of JSON in one write, which a kill may cut where a page
of the file ends. So a line begins with a line break of its own, and `logged` leaves a piece of one out.
"""

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from patience import settled

from ddm_rt.sample.balance.ledger import Draw, Ledger, Stream
from ddm_rt.sample.balance.quota import TreeQuota

STREAM = Stream("ab" * 32, "killed", "code:0=0.3,code:1=0.7")
WRITERS = 3
LARGEST = 20  # draws of one request


def quota() -> TreeQuota:
    return TreeQuota([0.3, 0.7], [{0: 0.5, 2: 0.5}, {1: 0.25, 3: 0.75}])


def reference(n: int) -> list[Draw]:
    """The stream's first draws."""
    return [Draw(position, code) for position, (code, _) in enumerate(quota().assign(n))]


def used(folder: Path) -> Path:
    """A ledger in `folder` with 8 draws done and 4 in the pool."""
    path = folder / "counts.ledger"
    with Ledger(path) as ledger:
        ledger.lease(STREAM, quota, 8).commit()
        ledger.lease(STREAM, quota, 4).release()
    return path


def write(path: Path, log: int, seed: int, requests: int) -> None:
    """Requests of 1 to 20 images; one in five is given back, and one in ten left to the garbage collector."""
    rng = random.Random(seed)
    with Ledger(path, timeout_s=60) as ledger:
        for _ in range(requests):
            lease = ledger.lease(STREAM, quota, rng.choice([1, 1, 2, 5, LARGEST]))
            fate = rng.random()
            if fate < 0.2:
                lease.release()
            elif fate < 0.9:
                lease.commit()
                os.write(log, b"\n" + json.dumps(lease.draws).encode() + b"\n")


def logged(log: Path) -> list[Draw]:
    draws: list[Draw] = []
    for line in log.read_text().splitlines():
        with suppress(json.JSONDecodeError):  # a piece of an array isn't JSON
            draws += [Draw(*draw) for draw in json.loads(line)]
    return draws


def start(path: Path, log: int, seed: int, requests: int = 10**9, gate: int | None = None) -> int:
    """A writer's process id; with a gate it waits for a byte from that."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        if gate is not None:
            os.read(gate, 1)
        write(path, log, seed, requests)
        code = 0
    finally:
        os._exit(code)


def kill(victim: int) -> None:
    os.kill(victim, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(victim, 0)[1]) == signal.SIGKILL, "it died of itself"


def race(path: Path, log: int, requests: int) -> None:
    """Four processes that begin at once."""
    gate, opener = os.pipe()
    children = []
    for seed in range(4):
        children.append(start(path, log, seed, requests, gate))
    os.write(opener, b"1234")
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def wait_for_more(log: int) -> None:
    written = os.fstat(log).st_size
    assert settled(lambda: os.fstat(log).st_size > written)


def kill_writers(path: Path, log: int, kills: int) -> None:
    rng = random.Random(kills)
    writers = [start(path, log, seed) for seed in range(WRITERS)]
    try:
        for number in range(kills):
            wait_for_more(log)  # the writers are busy
            time.sleep(rng.uniform(0.0, 0.03))
            kill(writers.pop(0))
            writers.append(start(path, log, WRITERS + number))
    finally:
        for writer in writers:
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)


def kill_makers(path: Path, log: int, kills: int) -> None:
    """Each is killed while it makes a ledger of its own, or soon after."""
    rng = random.Random(kills)
    for number in range(kills):
        maker = start(path.with_name(f"{path.name}-{number}"), log, number)
        time.sleep(rng.uniform(0.001, 0.04))
        kill(maker)


MODES = {"race": race, "kill": kill_writers, "birth": kill_makers}

if __name__ == "__main__":
    log = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    MODES[sys.argv[1]](Path(sys.argv[2]), log, int(sys.argv[4]))
