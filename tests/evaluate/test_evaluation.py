"""One evaluation end to end, on images whose brightness is their group."""

import numpy as np
import pytest
from tolerances import STATISTIC_ABS

from ddm_rt.errors import DdmError
from ddm_rt.evaluate import fairness
from ddm_rt.evaluate.evaluation import Evaluation, LabelledImages, evaluate
from ddm_rt.evaluate.intervals import stratified, wilson
from ddm_rt.evaluate.judge import Judge

GROUPS = ["dark", "light"]


def images(light, seed=0, size=8):
    """Noisy images; `light` [N] says which are light."""
    rng = np.random.default_rng(seed)
    level = np.where(np.asarray(light, bool), 190, 60)[:, None, None, None]
    return (level + rng.integers(-30, 31, (len(level), size, size, 3))).astype(np.uint8)


@pytest.fixture
def judge(write_judge):
    return Judge.load(write_judge())


@pytest.fixture
def reference():
    light = np.arange(40) % 4 == 0  # 30 dark, 10 light: balanced() must even it out
    return LabelledImages(images(light, seed=1), np.where(light, "light", "dark").tolist())


def test_unstratified(judge, reference):
    light = np.arange(100) % 5 == 0
    found = evaluate(images(light), None, judge, GROUPS, reference, min_per_group=15)
    assert (found.n, found.group_counts, found.strata) == (100, (80, 20), "none")
    assert found.raw.shares == (0.8, 0.2)
    assert found.raw.intervals[0] == pytest.approx(wilson(80, 100), abs=STATISTIC_ABS)
    assert found.raw.scores.fd_ddm == pytest.approx(0.3, abs=STATISTIC_ABS)
    assert found.neither.count == 0
    assert found.corrected is not None
    assert found.corrected.shares[0] == pytest.approx(fairness.cleam(0.8, 0.9, 1.0), abs=STATISTIC_ABS)
    for balance in (found.raw, found.corrected):
        for share, (low, high) in zip(balance.shares, balance.intervals, strict=True):
            assert low <= share <= high
        low, high = balance.fd_ddm_interval
        assert low <= balance.scores.fd_ddm <= high
    assert found.quality.n_reference == 20
    assert [group.quality.n for group in found.per_group] == [15, 15]
    assert found.judge.accuracy == pytest.approx(0.95, abs=STATISTIC_ABS)
    assert (found.nearest, found.codes, found.spd) == (None, (), None)


def test_stratified_by_code(judge, reference):
    light = np.arange(80) % 2 == 1
    codes = np.arange(80) % 2 * 3  # codes 0 and 3, pure
    found = evaluate(images(light), codes, judge, GROUPS, reference)
    assert found.strata == "code"
    assert found.raw.intervals[0] == pytest.approx(stratified(np.array([40, 0]), np.array([40, 40])), abs=STATISTIC_ABS)
    assert [(row.code, row.n, row.counts, row.neither) for row in found.codes] == [
        (0, 40, (40, 0), 0),
        (3, 40, (0, 40), 0),
    ]
    low, high = found.raw.intervals[0]
    wide = wilson(40, 80)
    assert high - low < wide[1] - wide[0]
    assert found.raw.fd_ddm_interval[0] < found.raw.fd_ddm_interval[1]


def test_null_codes_are_no_strata(judge, reference):
    light = np.arange(40) % 2 == 0
    found = evaluate(images(light), np.full(40, -1), judge, GROUPS, reference)
    assert (found.strata, found.codes) == ("none", ())


def test_images_after_n_only_fill_groups(judge, reference):
    light = np.concatenate([np.arange(50) % 10 == 0, np.ones(20, bool)])
    first = evaluate(images(light)[:50], None, judge, GROUPS, reference, min_per_group=20)
    found = evaluate(images(light), None, judge, GROUPS, reference, min_per_group=20, n=50)
    assert (found.raw, found.quality, found.n_generated) == (first.raw, first.quality, 70)
    assert first.per_group[1].reason == "15 of 20 images of light missing; generate more"
    assert found.per_group[1].quality is not None


def test_groups_must_be_classes_and_several(judge, reference):
    with pytest.raises(DdmError, match="medium unknown to the judge; its classes: dark, light"):
        evaluate(images([0] * 10), None, judge, ["dark", "medium"], reference)
    with pytest.raises(DdmError, match="two or more"):
        evaluate(images([0] * 10), None, judge, ["dark"], reference)


def test_another_class_is_neither(write_judge):
    judge = Judge.load(write_judge(classes=("dark", "medium", "light"), confusion=None))
    levels = np.repeat([30, 127, 230], [30, 10, 20]).astype(np.uint8)
    generated = np.broadcast_to(levels[:, None, None, None], (60, 8, 8, 3)).copy()
    real = LabelledImages(generated, np.repeat(["dark", "medium", "light"], [30, 10, 20]).tolist())
    found = evaluate(generated, None, judge, GROUPS, real, train=generated[:30])
    assert found.class_counts == {"dark": 30, "medium": 10, "light": 20}
    assert (found.neither.count, found.neither.interval) == (10, wilson(10, 60))
    assert found.raw.shares == (0.6, 0.4)
    assert found.corrected is None
    assert found.nearest is not None
    assert found.nearest.nearer_share == 0


def test_spd_and_target(judge, reference):
    light = np.arange(40) % 2 == 0
    asked = ["light"] * 40
    asked[1] = "dark"
    found = evaluate(
        images(light), None, judge, GROUPS, reference, conditions=asked, target=[0.25, 0.75], min_per_group=10
    )
    assert found.spd == pytest.approx(1 - 20 / 39, abs=STATISTIC_ABS)
    assert found.spd_interval[0] < found.spd < found.spd_interval[1]
    assert found.target == (0.25, 0.75)
    assert found.raw.scores.worst_group_ratio == pytest.approx(0.5 / 0.75, abs=STATISTIC_ABS)
    assert found.raw.fd_ddm_interval is None


def test_continuous_attributes_are_of_the_first_n_against_the_balanced_reference(judge, reference):
    light = np.arange(60) % 2 == 0
    found = evaluate(images(light), None, judge, GROUPS, reference, n=40, attributes=["skin_luminance"])
    (row,) = found.variation
    assert (row.attribute, row.n, row.n_reference) == ("skin_luminance", 40, 20)
    assert row.w1 < 0.1
    dark = evaluate(images(0 * light), None, judge, GROUPS, reference, attributes=["skin_luminance"])
    assert dark.variation[0].interval[0] > row.w1
    assert evaluate(images(light), None, judge, GROUPS, reference).variation == ()


def test_json_round_trip_and_repeats(judge, reference):
    light = np.arange(60) % 3 == 0
    arguments = (images(light), np.arange(60) % 4, judge, GROUPS, reference, images(light, seed=2))
    first, again = evaluate(*arguments, min_per_group=10), evaluate(*arguments, min_per_group=10)
    assert first == again
    assert Evaluation.model_validate_json(first.model_dump_json()) == first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"n": 41}, "1 to 40"),
        ({"target": [0.5, 0.6]}, "target"),
        ({"target": [1.0, 0.0]}, "target"),
        ({"target": [1.0]}, "target"),
        ({"codes": np.zeros(3, np.int64)}, "codes: 3 for 40"),
        ({"conditions": ["dark"]}, "conditions: 1 for 40"),
        ({"images": np.zeros((40, 8, 8, 3), np.float32)}, "uint8"),
        ({"train": np.zeros((9, 5, 5, 3), np.uint8)}, "train"),
        (
            {"reference": LabelledImages(images([0] * 9), ["dark"] * 9)},
            "reference: images of each of dark, light",
        ),
    ],
)
def test_bad_input(judge, reference, change, message):
    arguments = {
        "images": images(np.arange(40) % 2),
        "codes": None,
        "judge": judge,
        "groups": GROUPS,
        "reference": reference,
    }
    with pytest.raises(DdmError, match=message):
        evaluate(**(arguments | change))


def test_bad_reference():
    with pytest.raises(DdmError, match="reference: 2 labels for 3"):
        LabelledImages(images([0, 1, 1]), ["dark", "light"])
    with pytest.raises(DdmError, match="reference images"):
        LabelledImages(images([0, 1])[..., :1], ["dark", "light"])


def test_balanced_keeps_order(reference):
    balanced = reference.balanced(GROUPS)
    assert balanced.labels.count("dark") == balanced.labels.count("light") == 10
    where = [i for i, label in enumerate(reference.labels) if label == "light"]
    assert np.array_equal(balanced.images[np.array(balanced.labels) == "light"], reference.images[where])
