"""What a scheduler has done and is doing, counted."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ddm_rt.serve.scheduling.ticket import State

OTHER_SCOPES = "(other)"

_RECENT_TICKS = 512
_MOST_SCOPES = 1000


@dataclass(frozen=True)
class Stats:
    """A snapshot. Counts are since the start."""

    requests: int  # under way
    waiting: int  # images that wait for a slot
    occupied: int  # slots
    decoding: int  # images that left their slots and are not delivered
    slots: int
    queue: int  # images that may wait
    ticks: int
    steps: int  # of all images together
    tick_seconds: float  # all of them together
    tick_p50_s: float  # of the last 512; 0 before the first
    tick_p95_s: float
    images: int  # delivered, in requests that finished
    finished: int  # requests
    failed: int
    cancelled: int
    rejected: Mapping[str, int]  # by reason: "draining", "key", "queue", "deadline"
    assigned: Mapping[tuple[str | None, int], int]  # images of finished requests by scope and top code (-1: none)


class Tally:
    """The counts behind `Stats`. Its owner holds a lock."""

    def __init__(self) -> None:
        self.ticks = self.steps = 0
        self.tick_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT_TICKS)
        self.images = 0
        self.ended: Counter[str] = Counter()  # by `tickets.State`
        self.rejected: Counter[str] = Counter()
        self.assigned: Counter[tuple[str | None, int]] = Counter()
        self._scopes: set[str | None] = set()

    def ticked(self, seconds: float, images: int) -> None:
        """A tick moved so many images by a step."""
        self.ticks += 1
        self.steps += images
        self.tick_seconds += seconds
        self._recent.append(seconds)

    def assign(self, scope: str | None, top_codes: Counter[int]) -> None:
        """Clients name scopes: those after the first thousand are counted together."""
        if scope not in self._scopes and len(self._scopes) >= _MOST_SCOPES:
            scope = OTHER_SCOPES
        self._scopes.add(scope)
        for top_code, images in top_codes.items():
            self.assigned[scope, top_code] += images

    def tick_quantiles(self) -> tuple[float, float]:
        """Median and 95th percentile, in seconds."""
        if not self._recent:
            return 0.0, 0.0
        median, high = np.quantile(np.array(self._recent), [0.5, 0.95])
        return float(median), float(high)


def over_replicas(tally: Tally, requests: int, here: Sequence[Stats], ever: Sequence[Stats]) -> Stats:
    """Of several schedulers: gauges of those that are `here`, work of all there `ever` were, and requests by `tally`.

    Quantiles of ticks are those of the slowest.
    """
    return Stats(
        requests=requests,
        waiting=sum(each.waiting for each in here),
        occupied=sum(each.occupied for each in here),
        decoding=sum(each.decoding for each in here),
        slots=sum(each.slots for each in here),
        queue=sum(each.queue for each in here),
        ticks=sum(each.ticks for each in ever),
        steps=sum(each.steps for each in ever),
        tick_seconds=sum(each.tick_seconds for each in ever),
        tick_p50_s=max((each.tick_p50_s for each in here), default=0.0),
        tick_p95_s=max((each.tick_p95_s for each in here), default=0.0),
        images=tally.images,
        finished=tally.ended[State.FINISHED],
        failed=tally.ended[State.FAILED],
        cancelled=tally.ended[State.CANCELLED],
        rejected=dict(tally.rejected),
        assigned=dict(tally.assigned),
    )
