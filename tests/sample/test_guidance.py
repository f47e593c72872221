"""Branches and scales give the sum of the formula, in as few branches as it needs."""

import numpy as np
import pytest
from diffusers.guiders import ClassifierFreeGuidance
from hypothesis import given
from hypothesis import strategies as st
from tolerances import TABLE_ABS

from ddm_rt.errors import DdmError
from ddm_rt.sample.loop.guidance import Branches, Condition, branches, guided_steps

scales = st.sampled_from([0.0, 1.0, 2.0, 7.5]) | st.floats(0, 20)
texts = st.sampled_from(["a nurse", "", "blurry"])


def combined(found: Branches) -> dict[Condition, float]:
    """How much each condition's output counts in the end."""
    weights = {found.conditions[0]: 1.0}
    pairs = zip(found.conditions, found.conditions[1:], found.scales, strict=False)
    for before, after, scale in pairs:
        weights[before] = weights.get(before, 0.0) - scale
        weights[after] = weights.get(after, 0.0) + scale
    return weights


def formula(text: str | None, code: int, null: str | None, text_scale: float | None, code_scale: float) -> dict:
    """ε_∅∅ + g_t·(ε_t∅ - ε_∅∅) + g_c·(ε_tc - ε_t∅), with the code's difference from ε_∅∅ where there is no text."""
    weights: dict[Condition, float] = {}
    between = Condition(null if text_scale is None else text, -1)
    for condition, weight in (
        (Condition(null, -1), 1 - (text_scale or 0.0)),
        (between, (text_scale or 0.0) - code_scale),
        (Condition(text, code), code_scale),
    ):
        weights[condition] = weights.get(condition, 0.0) + weight
    return weights


@given(texts, st.integers(-1, 3), st.none() | texts, scales, scales)
def test_the_sum_is_the_formulas(text: str, code: int, null: str | None, text_scale: float, code_scale: float) -> None:
    found = branches(Condition(text, code), null, text_scale, code_scale)
    assert 1 <= len(found.conditions) == len(found.scales) + 1 <= 3
    got, want = combined(found), formula(text, code, null, text_scale, code_scale)
    for condition in got.keys() | want.keys():
        assert got.get(condition, 0.0) == pytest.approx(want.get(condition, 0.0), abs=TABLE_ABS)


@given(st.integers(-1, 3), scales)
def test_without_prompts_the_code_alone_is_guided(code: int, code_scale: float) -> None:
    got = combined(branches(Condition(None, code), None, None, code_scale))
    want = formula(None, code, None, None, code_scale)
    for condition in got.keys() | want.keys():
        assert got.get(condition, 0.0) == pytest.approx(want.get(condition, 0.0), abs=TABLE_ABS)


NULL, TEXT, BOTH = Condition("", -1), Condition("a nurse", -1), Condition("a nurse", 2)


@pytest.mark.parametrize(
    ("wanted", "text_scale", "code_scale", "expected"),
    [
        (BOTH, 7.5, 7.5, ((NULL, BOTH), (7.5,))),  # joint: no extra pass
        (BOTH, 7.5, 2.0, ((NULL, TEXT, BOTH), (7.5, 2.0))),  # separate
        (BOTH, 7.5, 0.0, ((NULL, TEXT), (7.5,))),
        (BOTH, 1.0, 1.0, ((BOTH,), ())),
        (BOTH, 1.0, 2.0, ((TEXT, BOTH), (2.0,))),
        (BOTH, 0.0, 0.0, ((NULL,), ())),
        (BOTH, 0.0, 2.0, ((NULL, TEXT, BOTH), (0.0, 2.0))),
        (TEXT, 7.5, 2.0, ((NULL, TEXT), (7.5,))),  # the null code: plain guidance
        (NULL, 7.5, 2.0, ((NULL,), ())),  # the empty prompt, without a code
        (Condition("", 2), 7.5, 2.0, ((NULL, Condition("", 2)), (2.0,))),
    ],
)
def test_the_fewest_branches(
    wanted: Condition, text_scale: float, code_scale: float, expected: tuple[tuple[Condition, ...], tuple[float, ...]]
) -> None:
    assert branches(wanted, "", text_scale, code_scale) == expected


def test_zeros_are_another_text_than_the_empty_prompt() -> None:
    found = branches(Condition("", -1), None, 5.0, 5.0)
    assert found == ((Condition(None, -1), Condition("", -1)), (5.0,))


@given(st.integers(1, 200), st.floats(0, 0.999), st.floats(0, 1))
def test_guided_steps_are_those_of_diffusers_guiders(num_steps: int, start: float, stop: float) -> None:
    if not start < stop:
        return
    guider = ClassifierFreeGuidance(guidance_scale=2.0, start=start, stop=stop)
    want = []
    for i in range(num_steps):
        guider.set_state(i, num_steps, None)
        want.append(guider._is_cfg_enabled())
    if any(want):
        assert guided_steps(num_steps, (start, stop)).tolist() == want
    else:
        with pytest.raises(DdmError, match=f"none of the {num_steps} steps is in it"):
            guided_steps(num_steps, (start, stop))


def test_steps_are_guided_from_the_start_to_before_the_stop() -> None:
    assert guided_steps(10, None).all()
    assert np.flatnonzero(guided_steps(10, (0.29, 0.6))).tolist() == [2, 3, 4, 5]
