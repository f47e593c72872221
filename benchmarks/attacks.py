"""Attacks on a running server: requests that are read in two ways (smuggling), and connections that hold it up.

    python benchmarks/attacks.py                                     # on `ddm-rt serve digits`; kept in the results
    python benchmarks/attacks.py http://HOST:PORT [--key KEY]        # on another server that you may attack
    python benchmarks/attacks.py --seconds 2 --only "slow heads"

Each attack is told with what came back. During each one a normal client asks for /healthz, each time on a connection
of its own, and after each one for an image. A defence failed where a hidden request was answered, where a status or an
open connection is not as it should be, or where a health check or the image was not answered within five seconds. Then
the exit code is 1.
"""

import argparse
import http.client
import json
import os
import resource
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import render
from attack_parts.floods import floods, hold
from attack_parts.framing import ask, framed
from measured_steps import commit
from serving_parts.servers import commanded
from store import RESULTS, save

from ddm_rt.engine.machine import processor

PATIENCE_S = 5.0
SECONDS = 20.0
IMAGE = "/v1/images/generations"


class Client:
    """A normal client, and how it fared during one attack."""

    def __init__(self, server: SplitResult, key: str | None) -> None:
        self._server, self._key = server, key
        self.asked, self.answered, self.slowest_s = 0, 0, 0.0

    def health(self) -> None:
        self._ask("GET", "/healthz")

    def image(self) -> None:
        self._ask("POST", IMAGE, json.dumps({"steps": 1}))

    def _ask(self, method: str, path: str, body: str | None = None) -> None:
        self.asked += 1
        headers = {"Content-Type": "application/json"} | ({} if self._key is None else {"Authorization": self._bearer})
        start = time.monotonic()
        connection = http.client.HTTPConnection(self._server.netloc, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            response.read()
            self.answered += response.status == 200
        except (OSError, http.client.HTTPException):
            pass  # it counts as asked alone
        finally:
            connection.close()
        self.slowest_s = max(self.slowest_s, time.monotonic() - start)

    @property
    def _bearer(self) -> str:
        return f"Bearer {self._key}"

    @property
    def well(self) -> bool:
        return self.answered == self.asked and self.slowest_s <= PATIENCE_S


def attack(server: SplitResult, key: str | None, seconds: float, only: str) -> list[dict[str, Any]]:
    """A row for each attack whose name has `only` in it."""
    rows = []

    def tell(name: str, client: Client, came_back: str, held: bool) -> None:
        client.image()
        row = {"attack": name, "came back": came_back, "health checks and images answered": client.answered}
        row |= {"asked": client.asked, "slowest, s": round(client.slowest_s, 3), "held": held and client.well}
        rows.append(row)
        print(" | ".join(str(value) for value in row.values()), flush=True)

    for each in framed(server.netloc, key):
        if only in each.name:
            client = Client(server, key)
            came_back, held = ask(server, each)
            client.health()
            tell(each.name, client, came_back, held)
    for flood in floods(server.netloc, key):
        if only in flood.name:
            client = Client(server, key)
            came_back, held = hold(server, flood, seconds, client.health)
            tell(flood.name, client, came_back, held)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", help="of a server that you may attack; by default one is started")
    parser.add_argument("--key", help="API key of the normal client, and of the attacker")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that connections are held, at most")
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of serving.jsonl and serving.md")
    options = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard != resource.RLIM_INFINITY else 4096, hard))
    load_before = round(os.getloadavg()[0], 2)
    with ExitStack() as stack:
        url = options.url
        if url is None:
            url = f"http://127.0.0.1:{stack.enter_context(commanded('--threads', '1')).port}"
        rows = attack(urlsplit(url), options.key, options.seconds, options.only)
    if options.url is None:
        record = {"rows": rows, "seconds": options.seconds, "load_before": load_before, "commit": commit()}
        record |= {"processor": processor(), "cpus": os.cpu_count()}
        save("attacks", record, options.results)
        render.render("serving", options.results)
    failed = [row["attack"] for row in rows if not row["held"]]
    print(f"{len(rows)} attacks, {len(failed)} defences failed{': ' if failed else ''}{', '.join(failed)}")
    return int(bool(failed) or not rows)


if __name__ == "__main__":
    sys.exit(main())
