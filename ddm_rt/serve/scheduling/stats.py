"""Counts of what a service has done and is doing."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.ticket import State, Ticket


class Aim(NamedTuple):
    """What images are counted under: their scope, and their target as the ledger writes it."""

    scope: str | None
    target: str | None


OTHER = Aim("(other)", None)

_MOST_AIMS = 1000
_REASONS = {Draining: "draining", TooMany: "key", QueueFull: "queue", DeadlineExceeded: "deadline"}


@dataclass(frozen=True)
class Stats:
    """A snapshot of a service's counts, which are since its start."""

    requests: int  # under way
    waiting: int  # images that wait for a slot
    occupied: int  # slots
    decoding: int  # images that left their slots and are not delivered
    slots: int
    queue: int  # images that may wait
    ticks: int
    steps: int  # of all images together
    tick_seconds: float  # all of them together
    tick_images: Mapping[int, int]  # ticks by the number of images that they moved
    ledger_calls: int  # draws of requests, with their preparation
    ledger_seconds: float  # all of them together
    ledger_errors: int
    images: int  # delivered, in requests that finished
    finished: int  # requests
    failed: int
    cancelled: int
    rejected: Mapping[str, int]  # by reason: "draining", "key", "queue", "deadline", "failure"
    assigned: Mapping[tuple[Aim, int], int]  # images of finished requests by aim and top code (-1: none)


class Tally:
    """The counts behind `Stats`. Its owner holds a lock."""

    def __init__(self) -> None:
        self.ticks = self.steps = 0
        self.tick_seconds = 0.0
        self.tick_images: Counter[int] = Counter()
        self.ledger_calls = self.ledger_errors = 0
        self.ledger_seconds = 0.0
        self.images = 0
        self.ended: Counter[State | None] = Counter()
        self.rejected: Counter[str] = Counter()
        self.assigned: Counter[tuple[Aim, int]] = Counter()
        self._aims: set[Aim] = set()

    def ticked(self, seconds: float, images: int) -> None:
        """A tick moved so many images by a step."""
        self.ticks += 1
        self.steps += images
        self.tick_seconds += seconds
        self.tick_images[images] += 1

    def reject(self, error: Exception) -> None:
        """A request was not taken in."""
        self.rejected[_REASONS.get(type(error), "failure")] += 1

    def end(self, ticket: Ticket) -> None:
        """A request has ended as its ticket says."""
        self.ended[ticket.state] += 1
        if ticket.state is State.FINISHED:
            manifest = ticket.manifest
            assert manifest is not None
            self.images += ticket.n
            self.assign(
                Aim(manifest.request.scope, ticket.target), Counter(image.top_code for image in manifest.images)
            )

    def assign(self, aim: Aim, top_codes: Counter[int]) -> None:
        """Images of a finished request have these top codes."""
        aim = counted(aim, self._aims)
        self._aims.add(aim)
        for top_code, images in top_codes.items():
            self.assigned[aim, top_code] += images

    def stats(self, **now: Any) -> Stats:
        """The counts, with `now` for what else `Stats` has, or instead of the ticks counted here."""
        counts: dict[str, Any] = {
            "ticks": self.ticks,
            "steps": self.steps,
            "tick_seconds": self.tick_seconds,
            "tick_images": dict(self.tick_images),
            "ledger_calls": self.ledger_calls,
            "ledger_seconds": self.ledger_seconds,
            "ledger_errors": self.ledger_errors,
            "images": self.images,
            **{state.value: self.ended[state] for state in State},
            "rejected": dict(self.rejected),
            "assigned": dict(self.assigned),
        }
        return Stats(**(counts | now))


def counted(aim: Aim, known: Collection[Aim]) -> Aim:
    """What an aim is counted under. Clients name scopes: aims after the first thousand are counted together."""
    return aim if aim in known or len(known) < _MOST_AIMS else OTHER


def over_replicas(tally: Tally, requests: int, here: Sequence[Stats], ever: Sequence[Stats]) -> Stats:
    """Of several schedulers: gauges of those `here`, work of all that there `ever` were, and requests by `tally`."""
    gauges = ("waiting", "occupied", "decoding", "slots", "queue")
    return tally.stats(
        requests=requests,
        **{name: sum(getattr(each, name) for each in here) for name in gauges},
        **{name: sum(getattr(each, name) for each in ever) for name in ("ticks", "steps", "tick_seconds")},
        tick_images=dict(sum((Counter(each.tick_images) for each in ever), Counter())),
    )
