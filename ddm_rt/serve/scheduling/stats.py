"""Counts of what a service has done and is doing."""

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from ddm_rt.serve.scheduling.errors import DeadlineExceeded, Draining, QueueFull, TooMany
from ddm_rt.serve.scheduling.observer import Observer
from ddm_rt.serve.scheduling.ticket import State, Ticket

if TYPE_CHECKING:
    from ddm_rt.serve.scheduling.service import LiveRequest

K = TypeVar("K")


class Aim(NamedTuple):
    """What images are counted under: their scope, and their target as the ledger writes it."""

    scope: str | None
    target: str | None


OTHER = Aim("(other)", None)

MOST_AIMS = 200
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
    assigned: Mapping[tuple[Aim, int], int]  # images of finished requests by aim and code (-1: none)


class CountsByAim(Generic[K]):
    """Counts of each aim. Clients name scopes, so only those that were used last have counts of their own: what the
    others had is added up under `OTHER`. Its owner holds a lock.
    """

    def __init__(self) -> None:
        self._counts: OrderedDict[Aim, Counter[K]] = OrderedDict()  # the one that was used last at the end
        self._others: Counter[K] = Counter()

    def add(self, aim: Aim, counts: Mapping[K, int]) -> None:
        self._counts.setdefault(aim, Counter()).update(counts)
        self._counts.move_to_end(aim)
        if len(self._counts) > MOST_AIMS:
            self._others.update(self._counts.popitem(last=False)[1])

    def of(self, aim: Aim) -> Counter[K]:
        """A copy; empty where the aim has no counts of its own."""
        return Counter(self._counts.get(aim, ()))

    def items(self) -> Iterator[tuple[Aim, Counter[K]]]:
        yield from self._counts.items()
        if self._others:
            yield OTHER, self._others


class Tally(Observer):
    """The counts behind `Stats`. Its owner holds a lock."""

    def __init__(self) -> None:
        self.ticks = self.steps = 0
        self.tick_seconds = 0.0
        self.tick_images: Counter[int] = Counter()
        self.ledger_calls = self.ledger_errors = 0
        self.ledger_seconds = 0.0
        self.images = 0
        self.ends: Counter[State | None] = Counter()
        self.rejected: Counter[str] = Counter()
        self.assigned: CountsByAim[int] = CountsByAim()

    def drawn(self, ticket: Ticket, seconds: float) -> None:
        self.ledger_calls += 1
        self.ledger_seconds += seconds

    def ledger_failed(self) -> None:
        self.ledger_errors += 1

    def ticked(self, seconds: float, images: int, requests: "Collection[LiveRequest]" = ()) -> None:
        self.ticks += 1
        self.steps += images
        self.tick_seconds += seconds
        self.tick_images[images] += 1

    def refused(self, error: Exception) -> None:
        self.rejected[_REASONS.get(type(error), "failure")] += 1

    def ended(self, ticket: Ticket) -> None:
        self.ends[ticket.state] += 1
        if ticket.state is State.FINISHED:
            manifest = ticket.manifest
            assert manifest is not None
            self.images += ticket.n
            aim = Aim(manifest.request.scope, ticket.target)
            self.assigned.add(aim, Counter(image.code for image in manifest.images))

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
            **{state.value: self.ends[state] for state in State},
            "rejected": dict(self.rejected),
            "assigned": {(aim, code): n for aim, counts in self.assigned.items() for code, n in counts.items()},
        }
        return Stats(**(counts | now))


def over_replicas(tally: Tally, requests: int, here: Sequence[Stats], ever: Sequence[Stats]) -> Stats:
    """Of several schedulers: gauges of those `here`, work of all that there `ever` were, and requests by `tally`."""
    gauges = ("waiting", "occupied", "decoding", "slots", "queue")
    return tally.stats(
        requests=requests,
        **{name: sum(getattr(each, name) for each in here) for name in gauges},
        **{name: sum(getattr(each, name) for each in ever) for name in ("ticks", "steps", "tick_seconds")},
        tick_images=dict(sum((Counter(each.tick_images) for each in ever), Counter())),
    )
