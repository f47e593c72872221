"""Mixed requests for a long time, many of whose clients go away: nothing leaks, and the ledger is exact."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

from serving_parts.clients import GONE, Answer, Load, clients
from serving_parts.servers import Commanded, commanded, until

from ddm_rt.bundle import Bundle
from ddm_rt.sample.balance.ledger import Ledger

CLIENTS = 6
LEAVING = 0.25
STREAMING = 0.3
SCOPES = ("default", "a", "b")
END_S = 60.0


def soak(seconds: float, threads: int, work: Path, seed: int = 0) -> dict[str, Any]:
    """`work` gets the ledger's file."""
    ledger = work / "soak.ledger"
    ledger.unlink(missing_ok=True)
    every = max(seconds / 120, 1.0)
    with commanded("--threads", str(threads), "--ledger", str(ledger)) as server:
        load = Load(server.port, CLIENTS, seconds, seed=seed, scopes=SCOPES, leaving=LEAVING, streaming=STREAMING)
        with clients(load) as running:
            seen = _watch(server, seconds, every)
            answers = running.answers()
        until(lambda: server.metrics()["ddm_requests_under_way"] == 0, END_S, "requests end after the load")
        metrics, balance, open_at_end = server.metrics(), server.balance(), server.open_files()
    quarter = len(seen) // 4
    settled, later = max(seen[:quarter]), max(seen[quarter:])
    return {
        "seconds": seconds,
        "answers": statuses(answers),
        "requests_finished": int(metrics['ddm_requests_total{state="finished"}']),
        "requests_cancelled": int(metrics['ddm_requests_total{state="cancelled"}']),
        "requests_failed": int(metrics['ddm_requests_total{state="failed"}']),
        "images": int(metrics["ddm_images_total"]),
        "rss_mib_first_quarter": settled[0],
        "rss_mib_highest_later": later[0],
        "rss_growth": round(later[0] / settled[0] - 1, 4),
        "threads_first_quarter": max(threads for _, threads, _ in seen[:quarter]),
        "threads_at_end": seen[-1][1],
        "open_files_first_quarter": max(files for _, _, files in seen[:quarter]),
        "open_files_at_end": open_at_end,
        **against_ledger(answers, metrics, balance, ledger),
    }


def _watch(server: Commanded, seconds: float, every: float) -> list[tuple[float, int, int]]:
    """Resident MiB, threads and open files, from time to time."""
    seen, until_s = [], time.monotonic() + seconds
    while time.monotonic() + every < until_s:
        time.sleep(every)
        seen.append((server.rss_mib(), server.threads(), server.open_files()))
    return seen


def statuses(answers: list[Answer]) -> dict[str, int]:
    counts = Counter("client left" if answer.status == GONE else str(answer.status) for answer in answers)
    return dict(sorted(counts.items()))


def against_ledger(
    answers: list[Answer], metrics: dict[str, float], balance: list[dict[str, Any]], ledger: Path
) -> dict[str, Any]:
    """The file against what the server counted and what clients got."""
    codes = Bundle.load("digits").codes
    delivered: Counter[int] = Counter()
    for answer in answers:
        delivered.update({int(code): images for code, images in answer.codes.items()})
    done: Counter[int] = Counter()
    worst_top, in_progress = 0.0, 0
    with Ledger(ledger) as counts:
        for stream in counts.streams():
            found = counts.counts(stream)
            done += found.done
            in_progress += found.leased.total()
            tops = Counter[int]()
            for code, images in found.issued.items():
                tops[codes.top_of[code]] += images
            share = found.issued.total() / codes.num_top_codes
            worst_top = max(worst_top, *(abs(tops[top] - share) for top in range(codes.num_top_codes)))
    assigned = sum(value for name, value in metrics.items() if name.startswith("ddm_assigned_total"))
    return {
        "ledger_images": done.total(),
        "ledger_equals_server": done.total() == int(assigned) == int(metrics["ddm_images_total"]),
        "delivered_images": delivered.total(),
        "delivered_within_ledger": all(delivered[code] <= done[code] for code in delivered),
        "in_progress_at_end": in_progress + sum(stream["assigned"]["in_progress"] for stream in balance),
        "furthest_top_code_from_its_share_images": round(worst_top, 2),
    }
