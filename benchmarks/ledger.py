"""Draws per second of the ledger.

    python benchmarks/ledger.py [--folder DIR] [--rounds 5] [--seconds 1]

A draw is the code of one image: leased and then committed, each in a transaction of its own, as `Pipeline.generate`
does for a request (without generating the images). Requests have 1 or 16 images; 16 codes under two top codes, as in
the shipped bundle. Rows: in memory; an SQLite file; the same with `fsync`; and the same file drawn from by two and four
processes at once, all of their draws together. The rows run in turn, and the median of the rounds is the figure.
`--folder` is where the files lie: the disk decides the rows with a file.
"""

import argparse
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import render
from measured_steps import commit
from store import RESULTS, save

from ddm_rt.sample.balance.ledger import Ledger, Stream
from ddm_rt.sample.balance.quota import TreeQuota

STREAM = Stream("00" * 32, "benchmark", "uniform")
# name -> in a file, fsync, processes
ROWS = {
    "in memory": (False, False, 1),
    "SQLite": (True, False, 1),
    "SQLite, 2 processes": (True, False, 2),
    "SQLite, 4 processes": (True, False, 4),
    "SQLite, fsync": (True, True, 1),
}


def quota() -> TreeQuota:
    return TreeQuota([0.5, 0.5], [{8 * top + i: 0.125 for i in range(8)} for top in range(2)])


def draw(path: Path | None, fsync: bool, images: int, seconds: float) -> float:
    """Draws per second of one process."""
    with Ledger(path, fsync=fsync, timeout_s=60) as ledger:
        ledger.lease(STREAM, quota, images).commit()
        requests, start = 0, time.perf_counter()
        while time.perf_counter() < start + seconds:
            with ledger.lease(STREAM, quota, images) as lease:
                lease.commit()
            requests += 1
        return requests * images / (time.perf_counter() - start)


def measure(name: str, images: int, seconds: float, folder: Path) -> float:
    in_file, fsync, processes = ROWS[name]
    with tempfile.TemporaryDirectory(dir=folder) as work:
        path = Path(work) / "counts.ledger" if in_file else None
        if processes == 1:
            return draw(path, fsync, images, seconds)
        command = [sys.executable, __file__, "--worker", str(path), str(images), str(seconds)]
        workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
        return sum(float(worker.communicate()[0]) for worker in workers)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of serving.jsonl and serving.md")
    parser.add_argument("--worker", nargs=3, metavar=("PATH", "IMAGES", "SECONDS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        path, images, seconds = options.worker
        print(draw(Path(path), False, int(images), float(seconds)))
        return
    load = os.getloadavg()[0]
    cells: dict[tuple[str, int], list[float]] = {(name, images): [] for name in ROWS for images in (1, 16)}
    for _ in range(options.rounds):
        for name, images in cells:
            cells[name, images].append(measure(name, images, options.seconds, options.folder))
    record = {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "sqlite": sqlite3.sqlite_version,
        "python": platform.python_version(),
        "commit": commit(),
        "load_average": load,
        "num_rounds": options.rounds,
        "seconds": options.seconds,
        "rows": [
            {"ledger": name, "images": images, "draws_per_s": statistics.median(rounds), "rounds": rounds}
            for (name, images), rounds in cells.items()
        ],
    }
    save("ledger", record, options.results)
    print(render.render("serving", options.results))


if __name__ == "__main__":
    main()
