"""What counts as found in the experiments on splits."""

import joint_faces
import numpy as np
import pytest
import splits

TRUTH = np.array([0] * 8 + [1] * 2)


def test_balanced_accuracy_is_of_the_best_way_to_name_the_sides() -> None:
    for score in (splits.balanced_accuracy, joint_faces.balanced_accuracy):
        assert score(TRUTH, TRUTH) == 1
        assert score(1 - TRUTH, TRUTH) == 1
        assert score(np.array([0] * 6 + [1] * 4), TRUTH) == pytest.approx((6 / 8 + 1) / 2)
        assert score(np.zeros(10, np.int64), TRUTH) == pytest.approx(0.5)


def test_several_sides_may_stand_for_one_group() -> None:
    sides = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert splits.balanced_accuracy(sides, TRUTH) == 1
    assert joint_faces.balanced_accuracy(sides, TRUTH) == 1


def test_the_training_sets_have_the_ratios_that_the_pages_name() -> None:
    joint, control = joint_faces.SETS.values()
    assert sum(joint.values()) == 1125
    assert sum(n for (gender, _), n in joint.items() if gender == "male") == 4 * 225
    assert [sum(n for (_, race), n in joint.items() if race == name) for name in joint_faces.RACES] == [
        600,
        300,
        150,
        75,
    ]
    assert set(control.values()) == {150}
