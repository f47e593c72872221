"""Whether a calibration holds for B: B's shares of the target's groups against what was asked for."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from calibration_settings import SETTINGS

from ddm_rt.bundle import Bundle, copy_bundle
from ddm_rt.evaluate.comparison.calibrated import calibrated
from ddm_rt.sample.calibration.calibration import calibration, store
from ddm_rt.sample.calibration.groups import Attribute

DIGIT = Attribute(name="digit", groups=("3", "8"))
N = 1000


@dataclass
class Facts:
    calibration_id: str | None
    target: str | None


@dataclass
class Images:
    """What is read of the real one."""

    facts: Facts
    codes: tuple[int, ...] = field(default_factory=lambda: tuple(k % 16 for k in range(N)))


def labels(threes: int, neither: int = 0) -> np.ndarray:
    return np.array(["3"] * threes + ["5"] * neither + ["8"] * (N - threes - neither))[
        np.random.default_rng(0).permutation(N)
    ]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, str]:
    bundle = copy_bundle(Bundle.load("digits"), tmp_path_factory.mktemp("calibrated") / "digits")
    audited = [(code, ("3" if code < 8 else "8",)) for code in range(16) for _ in range(4)]
    return store(bundle, calibration(bundle, (DIGIT,), audited, SETTINGS, {}), "default")


def found(known: tuple[Bundle, str], a: np.ndarray, b: np.ndarray, target: str = "3=.7,8=.3", **other: Any) -> Any:
    bundle, identity = known
    return calibrated(bundle, Images(Facts(identity, target)), (a, b), other.get("groups", ("3", "8")), 0.05)


def test_b_is_held_against_what_is_wanted_and_not_against_a(known: tuple[Bundle, str]) -> None:
    assert found(known, labels(700), labels(702)).verdict == "holds"
    assert found(known, labels(600), labels(702)).verdict == "holds", "A misses, B hits"
    assert found(known, labels(600), labels(600)).verdict == "does not hold", "both miss alike"
    assert found(known, labels(700), labels(655)).verdict == "undecided"


def test_shares_are_among_the_groups(known: tuple[Bundle, str]) -> None:
    three, eight = found(known, labels(700), labels(630, neither=100)).groups
    assert (three.group, three.wanted, three.a) == ("3", 0.7, 0.7)
    assert three.b == pytest.approx(0.7)
    assert eight.b == pytest.approx(0.3)
    assert three.interval[0] < 0.7 < three.interval[1]


def test_nothing_is_said_of_groups_that_the_target_is_not_about(known: tuple[Bundle, str]) -> None:
    assert found(known, labels(700), labels(700), groups=("3", "5")) is None
    bundle, _ = known
    for facts in (Facts(None, None), Facts("0" * 64, "3=.7,8=.3")):
        assert calibrated(bundle, Images(facts), (labels(700), labels(700)), ("3", "8"), 0.05) is None
