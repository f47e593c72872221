"""What a scheduler has counted: scopes within bounds, and sums over replicas."""

from dataclasses import fields
from typing import Any

from ddm_rt.serve.scheduling.stats import MOST_AIMS, OTHER, Aim, CountsByAim, Stats, Tally, over_replicas
from ddm_rt.serve.scheduling.ticket import State


def stats_of(**counts: Any) -> Stats:
    zeros = {field.name: {} if field.name in ("rejected", "assigned", "tick_images") else 0 for field in fields(Stats)}
    return Stats(**(zeros | counts))


def test_scopes_that_were_not_used_of_late_are_counted_together() -> None:
    counts: CountsByAim[int] = CountsByAim()
    aims = [Aim(f"scope {number}", "uniform") for number in range(MOST_AIMS + 2)]
    counts.add(aims[0], {0: 1})
    for aim in aims[1:]:
        counts.add(aim, {0: 1})
        counts.add(aims[0], {0: 2, 1: 1})  # in use all the time
    found = dict(counts.items())
    assert found.keys() == {OTHER, aims[0], *aims[3:]}
    assert found[OTHER] == {0: 2}
    assert found[aims[0]] == counts.of(aims[0]) == {0: 1 + 2 * (MOST_AIMS + 1), 1: MOST_AIMS + 1}
    assert not counts.of(aims[1])
    counts.add(aims[1], {5: 1})  # it comes back, and another one goes
    assert dict(counts.items())[OTHER] == {0: 3}
    assert sum(each.total() for _, each in counts.items()) == 1 + MOST_AIMS + 1 + 3 * (MOST_AIMS + 1) + 1


def test_of_replicas_that_are_gone_what_they_did_counts_and_what_they_held_does_not() -> None:
    tally = Tally()
    tally.images, tally.ends[State.FINISHED], tally.rejected["key"] = 7, 3, 1
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
