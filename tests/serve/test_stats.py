"""What a scheduler has counted: scopes within bounds, and sums over replicas."""

from collections import Counter
from dataclasses import fields
from typing import Any

from ddm_rt.serve.scheduling.stats import OTHER, Aim, Stats, Tally, over_replicas
from ddm_rt.serve.scheduling.ticket import State

MOST_AIMS = 1000


def stats_of(**counts: Any) -> Stats:
    zeros = {field.name: {} if field.name in ("rejected", "assigned", "tick_images") else 0 for field in fields(Stats)}
    return Stats(**(zeros | counts))


def test_scopes_after_the_first_thousand_are_counted_together() -> None:
    tally = Tally()
    for number in range(MOST_AIMS + 2):
        tally.assign(Aim(f"scope {number}", "uniform"), Counter({0: 1}))
    first = Aim("scope 0", "uniform")
    tally.assign(first, Counter({0: 2, 1: 1}))
    assert tally.assigned[first, 0] == 3
    assert tally.assigned[first, 1] == 1
    assert tally.assigned[Aim(f"scope {MOST_AIMS - 1}", "uniform"), 0] == 1
    assert tally.assigned[OTHER, 0] == 2
    assert len({aim for aim, _ in tally.assigned}) == MOST_AIMS + 1


def test_of_replicas_that_are_gone_what_they_did_counts_and_what_they_held_does_not() -> None:
    tally = Tally()
    tally.images, tally.ended[State.FINISHED], tally.rejected["key"] = 7, 3, 1
    here = stats_of(waiting=1, occupied=2, decoding=3, slots=4, queue=5, ticks=6, steps=7, tick_seconds=1.0)
    slow = stats_of(slots=4, queue=5, ticks=1, steps=1, tick_seconds=2.0, tick_images={2: 1})
    gone = stats_of(
        waiting=9,
        occupied=9,
        decoding=9,
        slots=9,
        queue=9,
        ticks=9,
        steps=9,
        tick_seconds=9.0,
        tick_images={2: 3, 9: 4},
    )
    found = over_replicas(tally, 2, [here, slow], [here, slow, gone])
    assert (found.requests, found.waiting, found.occupied, found.decoding) == (2, 1, 2, 3)
    assert (found.slots, found.queue) == (8, 10)
    assert (found.ticks, found.steps, found.tick_seconds) == (16, 17, 12.0)
    assert found.tick_images == {2: 4, 9: 4}
    assert (found.images, found.finished, found.failed, found.rejected) == (7, 3, 0, {"key": 1})
