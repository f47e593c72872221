"""Rules: what is one, what it is about, and PASS, FAIL or UNDECIDED by the interval."""

import numpy as np
import pytest

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit import measures, rules
from ddm_rt.evaluate.audit.measures import Labels

OFFERED = {"gender": [*measures.LIBRARIES, "share:female"], "gender&age": ["FD_L2"], "gender=female|prompt": ["x"]}


def attribute(first: int, n: int, name: str = "gender", **more: object):
    said = np.array(["female"] * first + ["male"] * (n - first))
    return measures.attribute(Labels(name, (name,), ("female", "male"), (0.5, 0.5), said, **more), None, seed=0)


def verdict(text: str, *attributes):
    return rules.judge([rules.parse_rule(text)], attributes, ())[0]


@pytest.mark.parametrize(
    "text", ["FD_ddm<=.05", " FD_ddm [gender] <= 5e-2 ", "FD_ddm[gender]<=0.05", "FD_ddm[a=b|c d]>=-1"]
)
def test_a_rule(text: str) -> None:
    rule = rules.parse_rule(text)
    assert rule.metric == "FD_ddm"
    assert rule.at_most == ("<=" in text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected METRIC[ATTRIBUTE]<=NUMBER"),
        ("FD_ddm", "expected METRIC"),
        ("FD_ddm<.05", "expected METRIC"),
        ("FD_ddm=.05", "expected METRIC"),
        ("FD_ddm[<=.05", "expected METRIC"),
        ("FD_ddm[gender]<=.05 and more", "expected METRIC"),
        ("FD_ddm<=nan", "the bound 'nan' is no number"),
        ("FD_ddm<=five", "the bound 'five' is no number"),
        ("fd<=.05", "the metric 'fd' is unknown; known: FD_ddm, FD_L2"),
    ],
)
def test_no_rule(text: str, said: str) -> None:
    with pytest.raises(DdmError, match="--rule") as error:
        rules.parse_rule(text)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("FD_ddm[race]<=1", "'race' isn't measured; measured: gender, gender&age"),
        ("FD_ddm[gender&age]<=1", "no FD_ddm of gender&age is measured; there are: FD_L2; FD_ddm is for two groups"),
        ("share:women>=.4", "no share:women is measured"),
    ],
)
def test_a_rule_about_something_else(text: str, said: str) -> None:
    with pytest.raises(DdmError) as error:
        rules.check([rules.parse_rule(text)], OFFERED)
    assert said in str(error.value)
    rules.check([rules.parse_rule(rule) for rule in ("FD_L2[gender&age]<=1", "FD_ddm<=1", "share:female>=.4")], OFFERED)


@pytest.mark.parametrize(
    ("text", "first", "n", "outcome"),
    [
        ("FD_ddm<=.05", 1000, 2000, "PASS"),
        ("FD_ddm<=.05", 1600, 2000, "FAIL"),
        ("FD_ddm<=.05", 50, 100, "UNDECIDED"),
        ("demographic_parity_ratio>=.8", 1000, 2000, "PASS"),
        ("disparate_impact>=.8", 1600, 2000, "FAIL"),
        ("share:female>=.45", 1000, 2000, "PASS"),
        ("statistical_parity_difference>=-.1", 1000, 2000, "PASS"),
        ("smallest_share>=.3", 20, 2000, "FAIL"),
    ],
)
def test_outcomes(text: str, first: int, n: int, outcome: str) -> None:
    found = verdict(text, attribute(first, n))
    assert (found.outcome, found.n, found.basis) == (outcome, n, "as judged")
    assert (found.more_images is None) == (outcome != "UNDECIDED")


def test_the_images_that_are_said_to_decide_do_decide() -> None:
    for first, n in ((50, 100), (53, 100), (60, 100), (230, 400)):
        found = verdict("FD_ddm<=.05", attribute(first, n))
        assert found.outcome == "UNDECIDED"
        if found.value == pytest.approx(0.05):
            continue
        more = n + 1.02 * found.more_images  # shares of whole images are a little off
        assert verdict("FD_ddm<=.05", attribute(round(first * more / n), round(more))).outcome != "UNDECIDED"
        fewer = n + 0.7 * found.more_images  # intervals of a hundred images move in steps
        assert verdict("FD_ddm<=.05", attribute(round(first * fewer / n), round(fewer))).outcome == "UNDECIDED"


def test_an_estimate_on_the_bound_is_never_decided() -> None:
    found = verdict("share:female>=.5", attribute(50, 100))
    assert (found.outcome, found.more_images) == ("UNDECIDED", None)
    assert "no number of images decides" in found.reason
    assert verdict("FD_ddm<=.05", attribute(55, 100)).more_images is None, ".55 - .5 is .05 but for rounding"


def test_an_interval_that_ends_at_the_metrics_range_tells_the_least_number() -> None:
    assert "at least 1 more image would decide" in verdict("FD_ddm<=.05", attribute(1, 1)).reason
    for text, first, n in (("FD_L2<=.65", 1, 3), ("FD_ddm<=.45", 1, 3), ("smallest_share>=.45", 4, 10)):
        assert "at least" in verdict(text, attribute(first, n)).reason, text
    assert "about 2415 more images would decide" in verdict("FD_ddm<=.05", attribute(53, 100)).reason


def test_a_rule_counts_the_images_inside_the_groups() -> None:
    said = np.array(["female"] * 30 + ["male"] * 30 + ["child"] * 40)
    labels = Labels("gender", ("gender",), ("female", "male"), (0.5, 0.5), said)
    assert verdict("FD_ddm<=.4", measures.attribute(labels, None, seed=0)).n == 60


def test_a_judge_that_errs_does_not_help_a_rule_to_pass() -> None:
    confusion = np.array([[7000, 3000], [3000, 7000]])
    found = verdict("FD_ddm<=.1", attribute(1160, 2000, confusion=confusion, classes=("female", "male")))
    assert verdict("FD_ddm<=.11", attribute(1160, 2000)).outcome == "PASS"  # as judged, .58
    assert (found.outcome, found.basis) == ("FAIL", "corrected")
    assert found.value == pytest.approx(0.2)


@pytest.mark.parametrize("confusion", [[[50, 50], [50, 50]], [[40, 60], [60, 40]]])
def test_errors_that_are_known_and_cannot_be_corrected_decide_nothing(confusion: list[list[int]]) -> None:
    found = verdict("FD_ddm<=.2", attribute(1000, 2000, confusion=np.array(confusion), classes=("female", "male")))
    assert (found.outcome, found.value, found.more_images) == ("UNDECIDED", None, None)
    assert "no correction exists" in found.reason


def test_a_rule_without_an_attribute_is_about_all_that_have_the_metric() -> None:
    two = attribute(50, 100), attribute(90, 100, "smile")
    found = rules.judge([rules.parse_rule("FD_ddm<=.2")], two, ())
    assert [(each.rule, each.outcome) for each in found] == [
        ("FD_ddm[gender]<=0.2", "PASS"),
        ("FD_ddm[smile]<=0.2", "FAIL"),
    ]


def test_a_rule_that_nothing_could_be_measured_for_is_not_passed() -> None:
    (found,) = rules.judge([rules.parse_rule("FD_L2[gender&age]<=9")], [attribute(1, 2)], ())
    assert (found.outcome, found.n, found.value) == ("UNDECIDED", 0, None)
    assert "no image shows" in found.reason
