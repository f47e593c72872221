"""Codes of long streams, seeds and shuffles: the first of them in clear, all of them as digests."""

import hashlib
from typing import Any

import numpy as np

from ddm_rt.sample.balance.assignment import Tree, shuffled
from ddm_rt.sample.balance.quota import TreeQuota
from ddm_rt.sample.loop.noise import derive, derive_range

PREFIXES = (100, 1_000, 10_000, 100_000)
_CLEAR = 64
_SEEDS = (0, 1, 2**63, 2**64 - 1)

# Shares of top codes, and of the codes in each.
_TREES: dict[str, tuple[tuple[float, ...], Tree]] = {
    "two branches": ((0.3, 0.7), ({0: 0.5, 1: 0.3, 2: 0.2}, {3: 0.6, 4: 0.4})),
    "a branch of one, an absent one": ((0.05, 0.0, 0.95), ({0: 1.0}, {1: 0.5, 2: 0.5}, {3: 0.01, 4: 0.33, 5: 0.66})),
    "seven alike": ((1 / 7,) * 7, tuple({code: 1.0} for code in range(7))),
}


def streams(digits: Tree) -> dict[str, Any]:
    """By tree, of which one is the shipped bundle's under its uniform target."""
    trees = {"digits": ((1 / len(digits),) * len(digits), digits), **_TREES}
    return {"codes": {name: _codes(*tree) for name, tree in trees.items()}, "seeds": _seeds(), "shuffles": _shuffles()}


def _codes(tops: tuple[float, ...], leaves: Tree) -> dict[str, Any]:
    drawn = [code for code, _ in TreeQuota(tops, leaves).assign(PREFIXES[-1])]
    return {"first": drawn[:_CLEAR]} | {str(n): _digest(drawn[:n]) for n in PREFIXES}


def _seeds() -> dict[str, Any]:
    """Of the images of a request that has the seed."""
    return {
        str(seed): {
            "first": derive_range(seed, range(4)),
            "last": derive(seed, 2**32 - 1),
            "10000": _digest(derive_range(seed, range(10_000))),
        }
        for seed in _SEEDS
    }


def _shuffles() -> dict[str, Any]:
    return {str(seed): {"of 16": shuffled(seed, 16), "of 10000": _digest(shuffled(seed, 10_000))} for seed in _SEEDS}


def _digest(numbers: list[int]) -> str:
    return hashlib.sha256(np.array(numbers, "<u8").tobytes()).hexdigest()[:16]
