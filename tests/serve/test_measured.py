"""What a judge saw of what was delivered: scope by scope, within bounds."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.intervals import stratified
from ddm_rt.serve.http.balance import Measured
from ddm_rt.serve.scheduling.stats import MOST_AIMS, Aim

TODAY = Aim("today", "uniform")
JUDGE: Any = SimpleNamespace(name="fake", classes=("a", "b", "c"))


def test_shares_are_of_all_images_of_a_scope_and_each_request_s_own() -> None:
    measured = Measured(JUDGE, ("a", "b"))
    measured.add(TODAY, [0, 0, 1], ["a", "a", "b"])
    own = measured.add(TODAY, [0, 1, 1], ["a", "c", "b"])
    assert [(share.group, share.images, share.share) for share in own.groups] == [("a", 1, 1 / 3), ("b", 1, 1 / 3)]
    found = measured.shares(TODAY)
    assert found is not None
    assert [(share.group, share.images, share.share) for share in found.groups] == [("a", 3, 1 / 2), ("b", 2, 1 / 3)]
    for share, of_codes in zip(found.groups, ([3, 0], [0, 2]), strict=True):
        assert (share.low, share.high) == stratified(np.array(of_codes), np.array([3, 3]))
    assert measured.shares(Aim("yesterday", "uniform")) is None


def test_targets_of_a_scope_are_counted_apart() -> None:
    measured, other = Measured(JUDGE, ("a", "b")), TODAY._replace(target="code:0=0.2,code:1=0.8")
    measured.add(TODAY, [0, 1], ["a", "b"])
    measured.add(other, [1, 1, 1, 1, 0], ["b", "b", "b", "b", "a"])
    for aim, share in ((TODAY, 0.5), (other, 0.2)):
        found = measured.shares(aim)
        assert found is not None
        assert found.groups[0].share == share


def test_the_scopes_that_were_used_last_have_counts_of_their_own() -> None:
    measured = Measured(JUDGE, ("a",))
    for number in (*range(MOST_AIMS + 1), 1):
        measured.add(Aim(f"scope {number}", "uniform"), [0], ["a"])
    measured.add(Aim("new", "uniform"), [0], ["a"])
    shares = [measured.shares(Aim(f"scope {number}", "uniform")) for number in (0, 1, 2, 3)]
    assert [found and found.images for found in shares] == [None, 2, None, 1]


def test_groups_are_the_judge_s() -> None:
    assert Measured(JUDGE).about.groups == ["a", "b", "c"]
    with pytest.raises(DdmError, match="group 'd' is unknown; judge fake has: a, b, c"):
        Measured(JUDGE, ("a", "d"))
