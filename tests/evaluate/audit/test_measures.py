"""Figures of an audit against fairlearn's own functions, and their intervals against simulation."""

import numpy as np
import pytest
from fairlearn.metrics import MetricFrame, demographic_parity_difference, demographic_parity_ratio, selection_rate
from tolerances import FAIRLEARN_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.audit import measures
from ddm_rt.evaluate.audit.measures import Labels


def labels_of(said: np.ndarray, groups: tuple[str, ...], **more: object) -> Labels:
    return Labels("tone", ("tone",), groups, (1 / len(groups),) * len(groups), said, **more)


def by_name(found) -> dict[str, object]:
    return {figure.name: figure for figure in found.figures}


def drawn(seed: int, n: int, groups: tuple[str, ...], p: list[float]) -> np.ndarray:
    return np.random.default_rng(seed).choice([*groups, "other"], n, p=p)


@pytest.mark.parametrize(
    ("groups", "p"), [(("a", "b"), [0.6, 0.3, 0.1]), (("a", "b", "c"), [0.6, 0.2, 0.1, 0.1])], ids=["two", "three"]
)
@pytest.mark.parametrize("n", [1, 7, 500])
def test_an_attribute_as_fairlearn_sees_it(groups: tuple[str, ...], p: list[float], n: int) -> None:
    """Each image of some group is a place, each group a candidate for it."""
    said = np.append(drawn(n, n - 1, groups, p), "a")
    found = measures.attribute(labels_of(said, groups), None, seed=0)
    inside = said[said != "other"]
    selected = np.concatenate([inside == group for group in groups]).astype(int)
    feature = np.repeat(groups, len(inside))
    frame = MetricFrame(metrics=selection_rate, y_true=selected, y_pred=selected, sensitive_features=feature)
    for share in found.shares:
        assert share.share == pytest.approx(frame.by_group[share.group], abs=FAIRLEARN_ABS)
    own = by_name(found)
    for name, oracle in (
        (measures.DIFFERENCE, demographic_parity_difference(selected, selected, sensitive_features=feature)),
        (measures.RATIO, demographic_parity_ratio(selected, selected, sensitive_features=feature)),
    ):
        assert own[name].library == "fairlearn"
        assert own[name].value == pytest.approx(oracle, abs=FAIRLEARN_ABS)
    assert own[measures.SPD].value == pytest.approx(-own[measures.DIFFERENCE].value, abs=FAIRLEARN_ABS)
    assert own[measures.IMPACT].value == own[measures.RATIO].value
    assert all(f.interval[0] <= f.value <= f.interval[1] for f in found.figures)


@pytest.mark.parametrize("values", [("x", "y"), ("x", "y", "z")])
def test_an_outcome_as_fairlearn_sees_it(values: tuple[str, ...]) -> None:
    rng = np.random.default_rng(3)
    said, feature = rng.choice(["a", "b"], 400, p=[0.3, 0.7]), rng.choice(values, 400)
    selected = (said == "a").astype(int)
    found = measures.parity(labels_of(said, ("a", "b")), "a", "prompt", feature)
    assert found is not None
    frame = MetricFrame(metrics=selection_rate, y_true=selected, y_pred=selected, sensitive_features=feature)
    for rate in found.rates:
        assert rate.rate == pytest.approx(frame.by_group[rate.value], abs=FAIRLEARN_ABS)
    own = by_name(found)
    difference = demographic_parity_difference(selected, selected, sensitive_features=feature)
    ratio = demographic_parity_ratio(selected, selected, sensitive_features=feature)
    assert own[measures.DIFFERENCE].value == pytest.approx(difference, abs=FAIRLEARN_ABS)
    assert own[measures.RATIO].value == pytest.approx(ratio, abs=FAIRLEARN_ABS)
    assert all(f.interval[0] <= f.value <= f.interval[1] for f in found.figures)


def test_an_outcome_that_no_image_shows_has_no_ratio() -> None:
    found = measures.parity(labels_of(np.array(["b"] * 4), ("a", "b")), "a", "prompt", np.array(["x", "x", "y", "y"]))
    assert found is not None
    own = by_name(found)
    assert (own[measures.DIFFERENCE].value, own[measures.RATIO].value) == (0, None)
    assert "no image shows the outcome" in own[measures.IMPACT].reason
    assert measures.parity(labels_of(np.array(["b"] * 2), ("a", "b")), "a", "prompt", np.array(["x", "x"])) is None


@pytest.mark.parametrize("p", [[0.5, 0.5], [0.8, 0.2], [0.4, 0.3, 0.3], [0.85, 0.1, 0.05]], ids=str)
def test_intervals_hold_the_truth_as_often_as_they_say(p: list[float]) -> None:
    groups, truth = tuple("abc"[: len(p)]), np.array(p)
    wanted = {
        measures.FD_L2: float(np.linalg.norm(truth - 1 / len(p))),
        measures.DIFFERENCE: float(np.ptp(truth)),
        measures.RATIO: float(truth.min() / truth.max()),
        measures.SMALLEST: float(truth.min()),
    }
    held = dict.fromkeys(wanted, 0)
    rounds = 120
    for seed in range(rounds):
        said = np.random.default_rng(seed).choice(groups, 120, p=p)
        own = by_name(measures.attribute(labels_of(said, groups), None, seed=seed))
        for name, value in wanted.items():
            low, high = own[name].interval
            held[name] += low - 1e-12 <= value <= high + 1e-12
    assert min(held.values()) >= 0.9 * rounds, held  # of 120, 95 % less three standard errors are 107


def test_corrected_figures_undo_what_the_judge_confuses() -> None:
    said = np.array(["a"] * 72 + ["b"] * 28)
    confusion = np.array([[900, 100], [100, 900]])
    found = measures.attribute(labels_of(said, ("a", "b"), confusion=confusion, classes=("a", "b")), None, seed=0)
    first = found.shares[0]
    assert first.corrected == pytest.approx((0.72 - 0.1) / 0.8)
    assert first.corrected_interval[0] < first.corrected < first.corrected_interval[1]
    assert by_name(found)[measures.FD_DDM].corrected == pytest.approx(first.corrected - 0.5)
    useless = measures.attribute(
        labels_of(said, ("a", "b"), confusion=np.full((2, 2), 50), classes=("a", "b")), None, seed=0
    )
    assert "don't tell a, b apart" in useless.not_corrected
    assert useless.shares[0].corrected is None


def test_images_that_a_judge_puts_into_no_group_are_not_forgotten() -> None:
    """Half of a are judged as a third class: 100 of 300 images are 200 of 400."""
    said = np.array(["a"] * 100 + ["b"] * 200 + ["c"] * 100)
    confusion = np.array([[50, 0, 50], [0, 100, 0], [0, 0, 100]])
    more = {"confusion": confusion, "classes": ("a", "b", "c")}
    few, many = (
        measures.attribute(labels_of(said, ("a", "b"), **more | {"confusion": confusion * k}), None, seed=0)
        for k in (1, 100)
    )
    assert [share.corrected for share in few.shares] == pytest.approx([0.5, 0.5])
    assert few.shares[0].corrected_interval[0] < 0.5 < few.shares[0].corrected_interval[1]
    assert np.ptp(few.shares[0].corrected_interval) > np.ptp(many.shares[0].corrected_interval)


def test_attributes_taken_together() -> None:
    one = labels_of(np.array(["a", "a", "b", "other", "", "a"]), ("a", "b"))
    other = Labels("age", ("age",), ("old", "young"), (0.5, 0.5), np.array(["old", "young", "old", "old", "old", ""]))
    cells = measures.crossed([one, other])
    assert cells.groups == ("a&old", "a&young", "b&old", "b&young")
    found = measures.attribute(cells, None, seed=0)
    assert [share.count for share in found.shares] == [1, 1, 1, 0]
    assert (found.n, found.inside, found.neither.count, found.unlabelled) == (4, 3, 1, 2)
    assert found.of == ("tone", "age")
    uneven = measures.crossed([Labels("tone", ("tone",), ("a", "b"), (0.9, 0.1), one.labels), other])
    assert uneven.target == pytest.approx((0.45, 0.45, 0.05, 0.05))


def test_codes_make_intervals_narrower() -> None:
    said = np.array(["a", "b"] * 50)
    plain = measures.attribute(labels_of(said, ("a", "b")), None, seed=0)
    coded = measures.attribute(labels_of(said, ("a", "b")), np.arange(100) % 2, seed=0)
    assert np.ptp(coded.shares[0].interval) < np.ptp(plain.shares[0].interval)
    assert coded.strata == "code"


def test_nothing_to_measure() -> None:
    with pytest.raises(DdmError, match="tone: no image has a label"):
        measures.attribute(labels_of(np.array(["", ""]), ("a", "b")), None, seed=0)
    with pytest.raises(DdmError, match="no image was judged as any of a, b"):
        measures.attribute(labels_of(np.array(["c"]), ("a", "b")), None, seed=0)
