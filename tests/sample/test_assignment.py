"""From a request to its codes: targets, shuffling, and what doesn't fit together."""

from collections import Counter
from typing import Any

import pytest
from fake_engine import fake_bundle
from fake_text import text_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import SHARE_ABS

from ddm_rt.bundle import Bundle
from ddm_rt.config import Balance
from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.assignment import Plan, by_codes, by_top_codes, code_tree, names_top_codes, shuffled
from ddm_rt.sample.balance.ledger import Ledger
from ddm_rt.sample.request import Request

TREE = code_tree(fake_bundle())


def request(**options: Any) -> Plan:
    return Request(**options).resolve(fake_bundle()).codes


@settings(deadline=None)
@given(seed=st.integers(0, 2**64 - 1), n=st.integers(1, 200))
def test_shuffling_is_a_permutation_by_the_seed(seed: int, n: int) -> None:
    order = shuffled(seed, n)
    assert sorted(order) == list(range(n))
    assert order == shuffled(seed, n)


def test_an_order_is_the_same_in_every_version() -> None:
    """Manifests and `csrc` rely on it. Another Philox stream would give another order."""
    assert shuffled(3, 8) == [5, 1, 2, 7, 0, 4, 6, 3]


def test_shuffles_are_even() -> None:
    """Each image comes to each of 4 places in a quarter of 2,000 seeds, within 5 standard deviations."""
    places = Counter((i, place) for seed in range(2000) for place, i in enumerate(shuffled(seed, 4)))
    assert max(abs(count - 500) for count in places.values()) < 5 * (2000 * 0.25 * 0.75) ** 0.5
    assert len({tuple(shuffled(seed, 4)) for seed in range(500)}) == 24


def test_a_shuffled_request_has_the_same_codes_in_another_order() -> None:
    weights = by_top_codes(TREE, "code:0=.3,code:1=.7")
    with Ledger() as ledger:
        for scope in (None, "today"):
            with request(n=8, scope=scope).draw(weights, "ab" * 32, 3, ledger) as assigned:
                plain = assigned
            with request(n=8, shuffle=True).draw(weights, "ab" * 32, 3, ledger) as assigned:
                assert assigned.codes != plain.codes
                assert assigned.codes == tuple(plain.codes[i] for i in (5, 1, 2, 7, 0, 4, 6, 3))


@pytest.fixture(scope="module")
def with_prompts(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return text_bundle(tmp_path_factory.mktemp("prompts"))


@given(prompts=st.integers(2, 5), n=st.integers(1, 80), share=st.sampled_from([0.5, 0.3, 0.1]))
def test_prompts_in_turn_have_all_codes_each(with_prompts: Bundle, prompts: int, n: int, share: float) -> None:
    """Two prompts and two top codes: in the order of the images each prompt would have one of them alone."""
    weights = by_top_codes(TREE, f"code:0={share},code:1={1 - share}")
    asked = Request([f"prompt {k}" for k in range(prompts)], n=n)
    with asked.resolve(with_prompts).codes.draw(weights, "ab" * 32, 0, Ledger()) as assigned:
        codes = assigned.codes
    top_of = {code: top for top, branch in enumerate(TREE) for code in branch}
    for first in range(prompts):
        own = [top_of[code] for code in codes[first::prompts]]
        for end in range(len(own) + 1):
            assert abs(sum(own[:end]) - (1 - share) * end) <= 1 + SHARE_ABS  # 2 (1 - 1/(2K - 2)) for K = 2


def test_positions_are_shuffled_with_their_codes() -> None:
    weights = by_top_codes(TREE, "uniform")
    in_order = [code for code, _ in weights.quota().assign(30)]
    with Ledger() as ledger:
        for start in (0, 15):
            with request(n=15, shuffle=True, scope="s").draw(weights, "ab" * 32, start, ledger) as assigned:
                assert assigned.positions is not None
                assert sorted(assigned.positions) == list(range(start, start + 15))
                assert assigned.codes == tuple(in_order[position] for position in assigned.positions)


def test_one_target_has_one_name_however_it_is_written() -> None:
    for text in ("code:0=.3,code:1=.7", " code:1 = 0.70 ,code:0=3e-1"):
        assert by_top_codes(TREE, text).target == "code:0=0.3,code:1=0.7"
    assert by_top_codes(TREE, "code:1=1").target == by_top_codes(TREE, "code:1=1,code:0=0").target
    assert by_top_codes(TREE, "uniform").target == "uniform"
    assert [names_top_codes(text) for text in ("uniform", "code:0=1", " code:0=1", "a=.5,b=.5", "")] == [
        *(True, True, True, False, False)
    ]


def test_weights_of_codes_become_weights_of_the_tree() -> None:
    weights = by_codes(TREE, "a=.5,b=.5", (0.1, 0.5, 0.4, 0.0), "c1")  # codes 0, 2 and 1, 3 under the two tops
    assert weights.tops == pytest.approx((0.5, 0.5), abs=SHARE_ABS)
    counts = weights.quota()
    counts.assign(1000)
    assert counts.counts == {0: 100, 2: 400, 1: 500, 3: 0}
    one_branch = by_codes(TREE, "a=1", (0.0, 0.25, 0.0, 0.75), "c1").quota()
    one_branch.assign(100)
    assert one_branch.counts == {0: 0, 2: 0, 1: 25, 3: 75}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scope": "s", "codes": [0]}, "scope is 's', but no quota"),
        ({"shuffle": True, "balance": Balance.OFF}, "shuffle is True, but no quota"),
        ({"target": "code:0=1", "codes": [0]}, "target is 'code:0=1', but no quota"),
        ({"scope": "a\tb"}, "scope is .* printable"),
        ({"codes": [0, 1]}, "codes has 2 entries; expected n = 1"),
        ({"codes": [4]}, "codes: image 0 has code 4; expected -1"),
    ],
)
def test_what_does_not_fit_together(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DdmError, match=said):
        request(**options)
