"""Many clients while things break: nothing is lost, nothing is an error inside, and every image is what it would be."""

import contextlib
import errno
import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from serving_parts.clients import GONE, Answer, Load, clients, digest
from serving_parts.servers import Commanded, commanded, until
from serving_parts.soak import against_ledger, statuses

from ddm_rt.sample.generation import encoded
from ddm_rt.sample.pipeline import Pipeline

CLIENTS = 64
SEEDS = 8  # few, so that a quiet run makes every image in reasonable time
STEPS = 8
LEAVING, STREAMING = 0.1, 0.3
DISK = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
EXPECTED = (200, 429, 503, GONE)
END_S = 120.0


def faults(seconds: float, threads: int, work: Path, replicas: int = 0, number: int = CLIENTS) -> dict[str, Any]:
    """`work` gets the ledger. The disk is full in two tenths of the time; a replica, where there are several, is killed
    in the middle of each half.

    Raises RuntimeError where the server doesn't say in time that it is well again.
    """
    disk = work / "disk"
    disk.mkdir()
    within = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", DISK, str(disk)]
    options = ["--threads", str(threads), "--ledger", str(disk / "l"), "--deadline", "120", "--log-level", "error"]
    with commanded(*options, *(["--replicas", str(replicas)] if replicas else []), within=within) as server:
        seen = Path(f"/proc/{server.pid}/root{disk}")  # as the server sees it
        events: list[tuple[float, str, Callable[[], Any]]] = []
        for half in (0.0, 0.5):
            events.append((half + 0.1, "disk full", lambda: _fill(seen)))
            events.append((half + 0.2, "disk free", (seen / "filling").unlink))
            if replicas:
                events.append((half + 0.35, "replica killed", lambda: _kill_a_replica(server.pid)))
        load = Load(
            *(server.port, number, seconds),
            sizes=(1, 4),
            steps=(STEPS,),
            leaving=LEAVING,
            streaming=STREAMING,
            seeds=SEEDS,
            digests=True,
        )
        with clients(load) as running:
            told = _happen(events, seconds, server)
            answers = running.answers()
            until(lambda: server.metrics()["ddm_requests_under_way"] == 0, END_S, "requests end after the load")
            metrics, balance = server.metrics(), server.balance()
            for file in seen.glob("l*"):
                shutil.copy(file, work)
    return {
        "seconds": seconds,
        "clients": number,
        "replicas": replicas,
        "events": told,
        "answers": statuses(answers),
        "requests_failed": int(metrics['ddm_requests_total{state="failed"}']),
        "not_as_expected": sum(answer.status not in EXPECTED for answer in answers),
        **_against_quiet(answers, threads),
        **against_ledger(answers, metrics, balance, work / "l"),
    }


def _happen(events: Sequence[tuple[float, str, Callable[[], Any]]], seconds: float, server: Commanded) -> list[str]:
    start, told = time.monotonic(), []
    for part, name, do in events:
        time.sleep(max(start + part * seconds - time.monotonic(), 0.0))
        do()
        if name == "disk free":
            until(lambda: _ready(server), END_S, "/readyz after the disk is free")
        told.append(f"{name} at {time.monotonic() - start:.0f} s")
    return told


def _ready(server: Commanded) -> bool:
    try:
        server.get("/readyz")
    except OSError:  # of urllib, for 503
        return False
    return True


def _fill(disk: Path) -> None:
    """Until nothing more fits. The ledger's log gives its room back first, else it would be written over and over."""
    with contextlib.closing(sqlite3.connect(disk / "l", timeout=END_S)) as ledger:
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (disk / "filling").open("wb", buffering=0) as filling:
        try:
            while True:
                filling.write(bytes(4096))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def _against_quiet(answers: Sequence[Answer], threads: int) -> dict[str, int]:
    """Each image that came against the same seed and code, made alone."""
    came = [tuple(image) for answer in answers for image in answer.images]
    pipeline = Pipeline.load("digits", backend="onnxruntime", threads=threads)
    quiet: dict[tuple[int, int], str] = {}
    for seed, code, _ in came:
        if (seed, code) not in quiet:
            made = pipeline.generate(n=1, seed=seed, codes=[code], num_steps=STEPS)
            quiet[seed, code] = digest(encoded(made.images[0]))
    wrong = sum(quiet[seed, code] != shown for seed, code, shown in came)
    return {"images_compared": len(came), "unlike_images_among_them": len(quiet), "images_not_as_in_quiet": wrong}


def _inside(pid: int) -> list[int]:
    """The processes in the same mount namespace: the server, and what Ray started for it."""
    own, found = Path(f"/proc/{pid}/ns/mnt").readlink(), []
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile, or somebody else's
            if process.name.isdigit() and (process / "ns/mnt").readlink() == own:
                found.append(int(process.name))
    return found


def _kill_a_replica(pid: int) -> None:
    replicas = [each for each in _inside(pid) if b"ServeReplica" in Path(f"/proc/{each}/cmdline").read_bytes()]
    if not replicas:
        raise RuntimeError("there is no replica to kill")
    os.kill(min(replicas), signal.SIGKILL)
