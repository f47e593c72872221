"""The randomised quota: its bound, which codes may come, and how often each one does."""

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import binom

from ddm_rt.errors import DdmError
from ddm_rt.kernels.philox import key_of, philox4x32
from ddm_rt.sample.balance.randomised import Quota, whole_weights, words

SEEDS = 10_000
BOUNDED = 0.15  # of an image: the expected count of a prefix is off by less
_rng = random.Random(0)
TARGETS = [[_rng.randint(1, 7) for _ in range(_rng.randint(2, 5))] for _ in range(30)]
CALIBRATED = np.random.default_rng(0).dirichlet(np.ones(16)).tolist()


def shares(target: Sequence[int]) -> list[float]:
    return [weight / sum(target) for weight in target]


def at(target: Sequence[int], counts: Sequence[int]) -> Quota:
    quota = Quota(shares(target))
    quota.restore(counts)
    return quota


def chances(quota: Quota) -> dict[int, float]:
    """Of each code that may come next; its chance may be 0."""
    may = quota._released()
    parts = dict(zip(may, quota._parts(may), strict=True)) if len(may) > 1 else {may[0]: 1}
    room = {k: part for k, part in parts.items() if len(may) == 1 or quota._even or quota._full(k) is None}
    return {k: part / sum(room.values()) for k, part in room.items()}


def after(counts: tuple[int, ...], k: int) -> tuple[int, ...]:
    return (*counts[:k], counts[k] + 1, *counts[k + 1 :])


@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_what_may_come_is_what_an_exhaustive_search_allows(target: list[int]) -> None:
    whole_sum = sum(target)

    @lru_cache(None)
    def alive(counts: tuple[int, ...]) -> bool:
        n = sum(counts)
        if any(abs(n * m - count * whole_sum) >= whole_sum for m, count in zip(target, counts, strict=True)):
            return False
        return n == whole_sum or any(alive(after(counts, k)) for k in range(len(target)))

    states = {(0,) * len(target)}
    for _ in range(whole_sum):
        reached = set()
        for counts in states:
            found = {*chances(at(target, counts))}
            assert found == {k for k in range(len(target)) if alive(after(counts, k))}, counts
            reached |= {after(counts, k) for k in found}
        states = reached
    assert states == {tuple(target)}


@pytest.mark.parametrize(
    ("target", "off"),
    [
        ([1, 1], 1e-9),
        ([3, 7], 1e-9),
        ([1, 1, 1], 1e-9),
        ([1, 1, 1, 1], 1e-9),
        ([2, 3, 5], BOUNDED),
        ([1, 2, 3, 4], BOUNDED),
        ([5, 9, 20, 3], BOUNDED),
        ([1, 1, 6, 7], BOUNDED),
    ],
    ids=str,
)
def test_the_expected_count_of_each_prefix_by_the_exact_law(target: list[int], off: float) -> None:
    """Exact for equal shares, two codes and the first image; near the share elsewhere."""
    law = {(0,) * len(target): 1.0}
    for n in range(sum(target)):
        next_law: Counter[tuple[int, ...]] = Counter()
        for counts, chance in law.items():
            for k, part in chances(at(target, counts)).items():
                if part:
                    next_law[after(counts, k)] += chance * part
        law = dict(next_law)
        for k, weight in enumerate(target):
            expected = sum(chance * counts[k] for counts, chance in law.items())
            assert abs(expected - (n + 1) * weight / sum(target)) < (1e-9 if n == 0 else off)
    assert law == pytest.approx({tuple(target): 1.0})


@pytest.mark.parametrize("weights", [[0.5, 0.5], [1 / 3] * 3, [0.25] * 4, [0.3, 0.7]], ids=str)
def test_over_seeds_each_position_has_each_code_with_its_share(weights: list[float]) -> None:
    """Inside the 99.9 % interval of the target, by Bonferroni over positions and codes."""
    positions = 12
    drawn = np.array([Quota(weights).assign(positions, seed) for seed in range(SEEDS)])
    tail = 0.001 / 2 / positions / len(weights)
    for k, share in enumerate(weights):
        low, high = binom.ppf([tail, 1 - tail], SEEDS, share)
        found = (drawn == k).sum(0)
        assert ((low <= found) & (found <= high)).all(), (k, found)


@pytest.mark.parametrize("weights", [[0.2, 0.3, 0.5], CALIBRATED], ids=["2 : 3 : 5", "calibrated"])
def test_over_seeds_the_first_image_has_each_code_with_its_share(weights: list[float]) -> None:
    found = Counter(Quota(weights).draw(words(seed, 0)) for seed in range(SEEDS))
    tail = 0.001 / 2 / len(weights)
    for k, share in enumerate(weights):
        low, high = binom.ppf([tail, 1 - tail], SEEDS, share)
        assert low <= found[k] <= high


@pytest.mark.parametrize("weights", [*map(shares, TARGETS), CALIBRATED, [1e-6, 2e-6, 0.5, 0.499997]], ids=str)
def test_every_prefix_is_off_by_less_than_one_image(weights: list[float]) -> None:
    for seed in range(3):
        quota = Quota(weights)
        for n in range(1, 300):
            quota.draw(words(seed, n - 1))
            for count, weight in zip(quota.counts, quota.weights, strict=True):
                assert abs(count * quota.denominator - n * weight) <= quota.bound * quota.denominator
    assert quota.bound < 1


@pytest.mark.parametrize("target", [[1, 1], [1, 1, 1], [3, 7], [2, 3, 5], [1] * 6], ids=str)
def test_streams_in_turn_are_each_within_one_image_and_their_total_near(target: list[int]) -> None:
    """Prompts in turn: a rule that looks at the total alone would give each of them one code."""
    for prompts in range(2, 13):
        streams, total = [Quota(shares(target)) for _ in range(prompts)], [0] * len(target)
        for position in range(300):
            stream = streams[position % prompts]
            total[stream.draw(words(7, position), total)] += 1
            n = sum(stream.counts)
            assert all(abs(x * sum(target) - n * m) < sum(target) for x, m in zip(stream.counts, target, strict=True))
            assert _off(total, target) < 6


@pytest.mark.parametrize("target", [[1, 1], [3, 7]], ids=str)
def test_new_streams_of_one_image_each_have_the_targets_shares(target: list[int]) -> None:
    total = [0] * len(target)
    for position in range(SEEDS):
        total[Quota(shares(target)).draw(words(3, position), total)] += 1
    assert _off(total, target) < 6


def _off(counts: Sequence[int], target: Sequence[int]) -> float:
    """The largest distance of a count from its share, in images."""
    return max(abs(x - sum(counts) * m / sum(target)) for x, m in zip(counts, target, strict=True))


def test_weights_are_small_fractions_where_they_can_be() -> None:
    assert whole_weights([1 / 3] * 3, "weights") == [1, 1, 1]
    assert whole_weights([0.3, 0.7], "weights") == [3, 7]
    assert whole_weights([5 / 37, 9 / 37, 20 / 37, 3 / 37], "weights") == [5, 9, 20, 3]
    assert whole_weights([0.0, 0.125, 0.875], "weights") == [0, 1, 7]
    assert sum(whole_weights(CALIBRATED, "weights")) == 2**48
    assert whole_weights([1e-10, 1 - 1e-10], "weights")[0] > 0  # a small share is no 0


def test_counts_that_no_draws_lead_to_are_refused() -> None:
    with pytest.raises(DdmError, match="further from the weights"):
        Quota([0.5, 0.5]).restore([2, 0])
    with pytest.raises(DdmError, match="expected 2 whole numbers"):
        Quota([0.5, 0.5]).restore([1])


def test_counts_that_end_nowhere_are_refused_before_the_bound_breaks() -> None:
    """Each count is near its share, and yet no draws keep all of them so: for some of these targets there are such."""
    refused = 0
    for target in TARGETS:
        period = sum(target)
        for n in range(1, period):
            for counts in itertools.product(*({n * m // period, -(-n * m // period)} for m in target)):
                if sum(counts) == n:
                    refused += _is_refused(at(target, counts), period - n, target)
    assert refused


def _is_refused(quota: Quota, draws: int, target: list[int]) -> bool:
    try:
        quota.assign(draws, 5)
    except DdmError:
        return True
    assert quota.counts == target
    return False


def test_words_are_philoxs() -> None:
    key, position = 2**63 + 5, 7 + 2**32
    found = list(itertools.islice(words(key, position), 6))
    for block, pair in enumerate(zip(found[::2], found[1::2], strict=True)):
        low, high, third, fourth = (np.array([word], np.uint64) for word in (7, 1, block, 3))
        r0, r1, r2, r3 = (
            int(word[0]) for word in philox4x32((low, high, third, fourth), key_of(np.array([key], np.uint64)))
        )
        assert pair == (r0 | r1 << 32, r2 | r3 << 32)
