"""Whose image is next: turns among equals, priorities, urgency."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.serve.scheduling.queue import WaitingLine, Work
from ddm_rt.serve.scheduling.ticket import Ticket

SHAPE = (1, 2, 2)


def work(n: int, priority: int = 0, deadline: float = 10.0) -> Work:
    return Work(n, 4, SHAPE, "", priority, Ticket(n, 4 * n, deadline))


arrivals = st.lists(
    st.tuples(st.integers(0, 30), st.integers(1, 9), st.integers(0, 2), st.floats(1, 99)), min_size=1, max_size=12
)


@given(arrivals=arrivals, hurry=st.sets(st.integers(0, 200)), cancelled=st.sets(st.integers(0, 11), max_size=3))
def test_every_image_is_picked_once_in_a_fair_order(
    arrivals: list[tuple[int, int, int, float]], hurry: set[int], cancelled: set[int]
) -> None:
    line, picked = WaitingLine(), []
    works = [work(n, priority, deadline) for _, n, priority, deadline in arrivals]
    here: list[Work] = []
    for time in range(31 + sum(each.n for each in works)):
        for each, (start, *_) in zip(works, arrivals, strict=True):
            if start == time:
                line.add(each)
                here.append(each)
        if time == 15:
            for i in cancelled & set(range(len(works))):
                works[i].ticket.claim()
        waiting = [each for each in here if each.waiting]
        assert bool(line) == bool(waiting)
        rounds = {each: each.round for each in waiting}
        found = line.pick(time in hurry)
        assert (found is None) == (not waiting)
        if found is None:
            continue
        first, image = found
        assert first.priority == max(each.priority for each in waiting)
        equals = [each for each in waiting if each.priority == first.priority]
        if time in hurry:
            assert first.urgency == min(each.urgency for each in equals)
        else:
            assert rounds[first] == min(rounds[each] for each in equals)
        assert image == sum(other is first for other, _ in picked)
        picked.append(found)
    counts = Counter(each for each, _ in picked)
    for number, (each, (start, *_)) in enumerate(zip(works, arrivals, strict=True)):
        assert counts[each] == each.n or (number in cancelled and start + each.n > 0)


def test_a_newcomer_takes_turns_from_now_on() -> None:
    line, old, new = WaitingLine(), work(100), work(100)
    line.add(old)
    for _ in range(50):
        line.pick()
    line.add(new)
    names = "".join("on"[found[0] is new] for _ in range(20) if (found := line.pick()) is not None)
    assert names.count("n") == pytest.approx(10, abs=1)
    assert "nnn" not in names
    assert "ooo" not in names


def test_a_newcomer_has_no_share_of_the_turns_that_one_in_a_hurry_took_from_another() -> None:
    line, pressed, patient, new = WaitingLine(), work(100, deadline=1.0), work(100), work(100)
    line.add(pressed)
    line.add(patient)
    for _ in range(50):
        assert line.pick(hurry=True) is not None
    assert pressed.next == 50
    line.pick()
    line.add(new)
    for _ in range(40):
        line.pick()
    assert (pressed.next, patient.next, new.next) == (50, 41, 0)


def test_requests_have_turns_in_proportion_to_their_images() -> None:
    line, large, small = WaitingLine(), work(16), work(4)
    line.add(large)
    line.add(small)
    picked = [found[0] for _ in range(20) if (found := line.pick()) is not None]
    assert picked.index(small) == 1
    assert [picked[start : start + 5].count(large) for start in range(0, 20, 5)] == [4, 4, 4, 4]
