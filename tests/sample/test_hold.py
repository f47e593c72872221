"""Weights for a target while another attribute is held: by their defining property, and what is refused."""

import numpy as np
import pytest
from calibration_settings import SETTINGS
from fake_engine import fake_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SHARE_ABS, SOLVED_SHARE_ABS

from ddm_rt.errors import DdmError
from ddm_rt.sample.calibration.calibration import base_weights, calibration, solve
from ddm_rt.sample.calibration.groups import Attribute
from ddm_rt.sample.calibration.hold import NotBoth, distance, nearest, parse_hold, parts_beside, solve_held

GENDER = Attribute(name="gender", groups=("female", "male"))
RACE = Attribute(name="race", groups=("asian", "black", "white"))
BOTH = (GENDER, RACE)
# Per code, audited images of female&asian, female&black, female&white, male&asian, male&black, male&white: women are
# asian, save for a few.
COUNTS = ((24, 1, 3, 0, 0, 0), (2, 1, 9, 1, 1, 6), (1, 0, 0, 1, 8, 8), (0, 1, 0, 1, 10, 18))
CELLS = [(a, b) for a in GENDER.groups for b in RACE.groups]
TARGET = "female=.6,male=.4"


def made():
    audited = [(code, CELLS[i]) for code, row in enumerate(COUNTS) for i, count in enumerate(row) for _ in range(count)]
    return calibration(fake_bundle(), BOTH, audited, SETTINGS, {})


def held_to(bound: float, target: str | None = TARGET):
    hold = parse_hold(f"race<={bound}", BOTH)
    return solve_held(made(), parts_beside(hold, target, BOTH), hold, fake_bundle().codes)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(3, 20), st.floats(0.01, 0.2))
def test_no_other_weights_within_the_bound_are_nearer_to_the_codes_own(seed: int, codes: int, room: float) -> None:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(2), codes) * 0.9 + 0.05
    q = rng.dirichlet(np.ones(3), codes) * 0.9 + 0.1 / 3
    base, other = rng.dirichlet(np.ones(codes), 2) * 0.9 + 0.1 / codes
    reference = base @ q
    bound = distance(other, q, reference) + room
    found = nearest(p, other @ p, q, reference, bound, base, 0.0)
    assert found @ p == pytest.approx(other @ p, abs=SOLVED_SHARE_ABS)
    assert distance(found, q, reference) <= bound + SOLVED_SHARE_ABS * 1000

    def divergence(weights: np.ndarray) -> float:
        return float(np.sum(weights * np.log(weights / base)))

    # `other` keeps both, and so does every mixture with it, since the problem is convex.
    for part in (0.01, 0.5, 1.0):
        assert divergence(found) <= divergence((1 - part) * found + part * other) + 1e-6


def test_a_bound_that_does_not_bind_changes_no_bit() -> None:
    record, codes = made(), fake_bundle().codes
    free = solve(record, parts_beside(parse_hold("race", BOTH), TARGET, BOTH), base_weights(codes))
    weights, held = held_to(1.0)
    assert weights.tolist() == free.tolist()
    assert held.distance == held.curve[-1].held > 0.05


def test_the_bound_is_kept_and_costs_codes() -> None:
    _, free = held_to(1.0)
    bound = 0.8 * free.distance
    weights, held = held_to(bound)
    assert held.distance == pytest.approx(bound, abs=1e-5)
    assert weights.sum() == pytest.approx(1, abs=SHARE_ABS)
    assert held.curve[-1].missed < 1e-6, "the target is met"
    assert min(abs(point.held - bound) for point in held.curve) < 1e-5


def test_where_both_cannot_be_had_the_message_says_how_far_each_goes_and_the_curve_what_lies_between() -> None:
    with pytest.raises(NotBoth) as caught:
        held_to(0.02)
    said = str(caught.value)
    assert "--hold race<=0.02 and target gender:female=0.6,male=0.4 can't both be had: with this target race is" in said
    assert "race is at least 0.09" in said
    assert "within the bound the nearest to the target is female=0.4" in said
    curve = caught.value.held.curve
    held, missed = [point.held for point in curve], [point.missed for point in curve]
    assert held == sorted(held)
    assert held[0] < 0.001
    assert missed == sorted(missed, reverse=True)
    assert missed[0] > 0.05
    assert missed[-1] < 1e-6
    assert all(point.effective_codes > 1 and point.effective_images > 0 for point in curve)


def test_other_shares_can_be_held() -> None:
    hold = parse_hold("race:asian=.4,black=.3,white=.3<=.1", BOTH)
    _, held = solve_held(made(), parts_beside(hold, None, BOTH), hold, fake_bundle().codes)
    assert held.reference == {"asian": 0.4, "black": 0.3, "white": 0.3}
    assert held.distance <= 0.1 + 1e-5
    assert held.target == "gender:female=0.5,male=0.5", "without a target, even shares of what isn't held"


def test_any_target_gets_weights_for_the_next_audits() -> None:
    hold = parse_hold("race<=.01", BOTH)
    weights, held = solve_held(
        made(), parts_beside(hold, "female=1,male=0", BOTH), hold, fake_bundle().codes, approximate=True
    )
    assert held.distance < 0.011
    assert weights.sum() == pytest.approx(1, abs=SHARE_ABS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("age", "attribute 'age' is unknown; known: gender, race"),
        ("race<=0", "the bound is '0'; expected a number above 0, at most 1.41"),
        ("race<=2", "the bound is '2'; expected a number above 0"),
        ("race<=much", "the bound is 'much'"),
        ("race:asian=1;gender:uniform", "2 attributes; expected one"),
        ("race:tall=1", "group 'tall' is unknown"),
    ],
)
def test_bad_holds(text: str, message: str) -> None:
    with pytest.raises(DdmError) as caught:
        parse_hold(text, BOTH)
    assert message in str(caught.value)


def test_what_is_held_is_no_target() -> None:
    with pytest.raises(DdmError, match="race stands in the target 'race:uniform' too"):
        parts_beside(parse_hold("race", BOTH), "race:uniform", BOTH)
    with pytest.raises(DdmError, match="gender is the only attribute; expected another to aim at"):
        parts_beside(parse_hold("gender", (GENDER,)), None, (GENDER,))
