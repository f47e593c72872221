"""Shards in object storage, killed again and again: `python benchmarks/killed_shards.py`.

Makes N digits into a folder, and the same into a bucket of moto's server on this machine, where the run is ended with
SIGKILL (the command and its workers) each time some more shards are whole, and started again. After each kill every
object that can be seen is compared with the folder's, and so is every byte at the end.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import ray_processes
import render
from measured_steps import commit
from object_storage import BUCKET, Storage, storage
from store import RESULTS, save

POLL_S = 0.2
PREFIX = "shards"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of object_storage.jsonl and its page")
    parser.add_argument("-n", type=int, default=20_000, help="images")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--shard-size", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=3)
    options = parser.parse_args()
    line = ["sample", "digits", "-n", options.n, "--steps", options.steps, "--shard-size", options.shard_size]
    line += ["--workers", options.workers, "--threads", 1, "--backend", "onnxruntime", "--shards"]
    command = [sys.executable, "-m", "ddm_rt.cli", *map(str, line)]
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, storage() as store:
        local = Path(folder) / "shards"
        began = time.monotonic()
        subprocess.run([*command, str(local)], check=True)
        local_s = time.monotonic() - began
        expected = {path.name: path.read_bytes() for path in local.iterdir()}
        began = time.monotonic()
        kills = killed(command, store, expected, options.kills)
        done = subprocess.run([*command, f"s3://{BUCKET}/{PREFIX}"], check=True, env=os.environ | store.environment)
        stored_s = time.monotonic() - began
        found = store.contents(PREFIX)
        again = subprocess.run(
            done.args, check=True, env=os.environ | store.environment, capture_output=True, text=True
        ).stdout
    record = {
        "command": "benchmarks/killed_shards.py",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": platform.python_version(),
        "commit": commit(),
        "load_average": load,
        **{name: value for name, value in vars(options).items() if name not in ("results", "kills")},
        "images": sum(shard["count"] for shard in json.loads(found["manifest.json"])["shards"]),
        "bytes": sum(map(len, found.values())),
        "equal_to_local": found == expected,
        "run_again": again.strip(),
        "seconds_local": local_s,
        "seconds_stored": stored_s,
        "rows": kills,
    }
    save("object storage", record, options.results)
    print(render.render("object_storage", options.results))
    if not record["equal_to_local"] or record["images"] != options.n:
        sys.exit("the bucket is not what the folder is")


def killed(command: list[str], store: Storage, expected: dict[str, bytes], kills: int) -> list[dict[str, int]]:
    """Ends the run at even parts of its way, and says what could be seen then."""
    seen: list[dict[str, int]] = []
    shards = len(expected) - 1
    for kill in range(kills):
        wanted = (kill + 1) * shards // (kills + 1)
        process = subprocess.Popen(
            [*command, f"s3://{BUCKET}/{PREFIX}"], start_new_session=True, env=os.environ | store.environment
        )
        while store.recorded(PREFIX) < wanted:
            if process.poll() is not None:
                sys.exit(f"the run ended by itself with {process.returncode}")
            time.sleep(POLL_S)
        end(process)
        objects: dict[str, Any] = store.contents(PREFIX)
        objects.pop("manifest.json")
        if not objects.items() <= expected.items():
            sys.exit("an object isn't what the folder has under its name")
        seen.append({"recorded": store.recorded(PREFIX), "whole_objects": len(objects), "of": shards})
    return seen


def end(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for the command and all that it started, Ray's own processes among them."""
    below = ray_processes.pids("", process.pid)
    process.kill()
    process.wait()
    for pid in below:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
