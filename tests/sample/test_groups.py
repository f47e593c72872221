"""Targets over groups in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tolerances import SHARE_ABS

from ddm_rt.errors import DdmError
from ddm_rt.sample.calibration.groups import Attribute, cells, parse_attributes, parse_target

GENDER = Attribute(name="gender", groups=("female", "male"))
RACE = Attribute(name="race", groups=("asian", "black", "white"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("female=.5,male=.5", "gender:female=0.5,male=0.5"),
        ("male=.3, female=0.7", "gender:female=0.7,male=0.3"),
        ("female=1", "gender:female=1"),
        ("gender:uniform", "gender:female=0.5,male=0.5"),
        ("race:white=.5,asian=.5;male=1", "gender:male=1;race:asian=0.5,white=0.5"),
        ("asian&male=.25,female&white=.75", "gender&race:female&white=0.75,male&asian=0.25"),
    ],
)
def test_targets(text: str, said: str) -> None:
    """However it is written, one target has one spelling; and that spelling means the same."""
    parts = parse_target(text, (GENDER, RACE))
    assert ";".join(map(str, parts)) == said
    assert parse_target(said, (GENDER, RACE)) == parts


def test_shares_that_are_written_short_are_scaled_to_one() -> None:
    (part,) = parse_target("female=.333333,male=.6666665", (GENDER,))
    assert sum(part.shares) == pytest.approx(1, abs=SHARE_ABS)
    assert part.shares == pytest.approx([0.333333 / 0.9999995, 0.6666665 / 0.9999995], abs=SHARE_ABS)


def test_every_combination() -> None:
    (part,) = parse_target("race&gender:uniform", (GENDER, RACE))
    assert cells(part.attributes)[:2] == ["female&asian", "female&black"]
    assert part.shares == (1 / 6,) * 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("female=.5,male=.6", "the shares of gender sum to 1.1; expected 1"),
        ("female=.5,male=.499", "sum to 0.999"),
        ("female=-.5,male=1.5", "the share of female is -0.5; expected a finite number, not negative"),
        ("female=nan,male=.5", "the share of female is nan"),
        ("female=inf,male=.5", "the share of female is inf"),
        ("female=1e308,male=1e308", "the shares of gender sum to inf; expected 1"),
        ("female=half,male=.5", "'half' is no number; expected the share of female"),
        ("femlae=.5,male=.5", "group 'femlae' is unknown; known: gender: female, male; race: asian, black, white"),
        ("sex:female=1", "attribute 'sex' is unknown; known: gender, race"),
        ("gender:asian=1", "group 'asian' is unknown; known: gender: female, male"),
        ("female=.5,female=.5", "female is given twice"),
        ("male&asian=.5,asian&male=.5", "asian&male is given twice"),
        ("female=.5,asian=.5", "asian names race; this part is about gender"),
        ("female=1;gender:uniform", "gender stands in two parts"),
        ("female&male=1", "female&male names two groups of gender"),
        ("gender&gender:uniform", "gender is named twice"),
        ("uniform", "'uniform' of what?"),
        ("female", "'female'; expected GROUP=SHARE"),
        ("", "''; expected GROUP=SHARE"),
        ("female=1;", "''; expected GROUP=SHARE"),
    ],
)
def test_bad_targets(text: str, message: str) -> None:
    with pytest.raises(DdmError) as caught:
        parse_target(text, (GENDER, RACE))
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"target {text!r}: ")


def test_a_group_of_two_attributes_needs_its_attribute() -> None:
    both = (Attribute(name="hair", groups=("dark", "fair")), Attribute(name="skin", groups=("dark", "fair")))
    with pytest.raises(DdmError, match="'dark' is a group of hair, skin; expected ATTRIBUTE: before it"):
        parse_target("dark=.5,fair=.5", both)
    assert parse_target("skin:dark=.5,fair=.5", both)[0].name == "skin"


@given(st.text(alphabet="femal=,;:&.15? ", max_size=30))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    try:
        parts = parse_target(text, (Attribute(name="a", groups=("f", "m")),))
    except DdmError:
        return
    assert abs(sum(parts[0].shares) - 1) < 1e-9


def test_attributes() -> None:
    assert parse_attributes("female,male") == (Attribute(name="group", groups=("female", "male")),)
    assert parse_attributes("gender: female,male ;race:asian,black,white") == (GENDER, RACE)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("female", "expected two or more different ones"),
        ("a,a", "expected two or more different ones"),
        ("a,", "'' is no name for a group"),
        ("a,b=c", "'b=c' is no name"),
        ("a,?", "'?' is no name"),
        ("code:a,b", "would read as a code in a target"),
        ("x:a,b;x:c,d", "expected different names"),
    ],
)
def test_bad_attributes(text: str, message: str) -> None:
    with pytest.raises(DdmError) as caught:
        parse_attributes(text)
    assert message in str(caught.value)
