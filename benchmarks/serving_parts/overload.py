"""Ten times as many requests as the server can take, for minutes: it stays up, says no in time, keeps its word."""

import statistics
import time
from collections import Counter
from typing import Any

from serving_parts.clients import Answer, Load, asked, clients
from serving_parts.servers import Commanded, commanded, until

TIMES = 10
SIZES = (8, 8)
STEPS = (25,)
DEADLINE_S = 10.0
CLIENTS = 192  # more than the requests that can be under way, so that arrivals seldom wait for one that is free
PROBES_S = 5.0
CAPACITY_S = 10.0


def overload(seconds: float, threads: int) -> dict[str, Any]:
    with commanded("--threads", str(threads)) as server:
        asked(Load(server.port, 4, 3.0))  # warm
        capacity = _capacity(server)
        before = _alone(server)
        rate = TIMES * capacity
        with clients(Load(server.port, CLIENTS, seconds, SIZES, STEPS, rate=rate, deadline_s=DEADLINE_S)) as running:
            memory = _memory(server, seconds)
            answers = running.answers()
        until(lambda: server.metrics()["ddm_requests_under_way"] == 0, 2 * DEADLINE_S, "requests end after the load")
        after = _alone(server)
        healthy = server.get("/readyz")
    statuses = Counter(answer.status for answer in answers)
    accepted = [answer for answer in answers if answer.status == 200]
    return {
        "seconds": seconds,
        "capacity_requests_per_s": round(capacity, 2),
        "sent_per_s": round(len(answers) / seconds, 1),
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "accepted_per_s": round(len(accepted) / seconds, 2),
        "accepted_p50_s": round(statistics.median(answer.seconds for answer in accepted), 2),
        "accepted_longest_s": round(max(answer.seconds for answer in accepted), 2),
        "deadline_s": DEADLINE_S,
        "accepted_past_deadline": sum(answer.seconds > DEADLINE_S for answer in accepted),
        "refused_p50_ms": _ms([answer.seconds for answer in answers if answer.status == 429]),
        "rss_mib_first_quarter": memory[0],
        "rss_mib_highest_later": memory[1],
        "rss_growth": round(memory[1] / memory[0] - 1, 4),
        "alone_before_p50_ms": before,
        "alone_after_p50_ms": after,
        "ready_afterwards": '"ready"' in healthy,
    }


def _capacity(server: Commanded) -> float:
    """Requests a second that are answered where there are always some to do."""
    answers = sorted(asked(Load(server.port, 6, CAPACITY_S, SIZES, STEPS)), key=lambda answer: answer.end)
    ended = [answer.end for answer in answers if answer.status == 200]
    return (len(ended) - 1) / (ended[-1] - ended[0])


def _alone(server: Commanded) -> float:
    """Milliseconds of a request for one image while nobody else asks."""
    return _ms([answer.seconds for answer in _first_gone(asked(Load(server.port, 1, PROBES_S, (1, 1), (8,))))])


def _first_gone(answers: list[Answer]) -> list[Answer]:
    return answers[5:]


def _memory(server: Commanded, seconds: float) -> tuple[float, float]:
    """Resident MiB: the highest of the first quarter, and of what follows."""
    seen = []
    for _ in range(max(int(seconds), 4)):
        time.sleep(seconds / max(int(seconds), 4))
        seen.append(server.rss_mib())
    quarter = len(seen) // 4
    return max(seen[:quarter]), max(seen[quarter:])


def _ms(seconds: list[float]) -> float:
    return round(1000 * statistics.median(seconds), 2)
