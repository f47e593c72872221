"""Which code each image of a request gets: given, none, or drawn by a quota, of the request alone or of a scope."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE
from ddm_rt.errors import DdmError
from ddm_rt.kernels.philox import key_of
from ddm_rt.sample.balance.factors import cell_weights, known, names_factors, parse_factors, spelled
from ddm_rt.sample.balance.ledger import Counts, Draw, Stream
from ddm_rt.sample.balance.quota import TreeQuota, parse_target
from ddm_rt.sample.loop.noise import philox4x32

_SHUFFLE = 2  # fourth word of the counter; noise has 0, `derive` has 1

Tree = Sequence[Mapping[int, float]]  # for each top code, its codes with their shares of it


class Lent(Protocol):
    """Draws of one request; see `sample.balance.ledger.Lease`."""

    @property
    def draws(self) -> tuple[Draw, ...]: ...

    def commit(self) -> None: ...


class Lender(Protocol):
    """What sampling needs of a ledger, wherever it is: in this process, or in one that others share. See
    `sample.balance.ledger.Ledger`, which says what each of these does and raises.
    """

    def lease(self, stream: Stream, make_quota: Callable[[], TreeQuota], n: int) -> AbstractContextManager[Lent]:
        """`n` draws of a stream, for a request."""

    def counts(self, stream: Stream) -> Counts:
        """Where a stream stands."""

    def streams(self, scope: str | None = None) -> list[Stream]:
        """The streams that have counts, of one scope or of all."""

    def check(self) -> None:
        """Make it where there is none, and write to it. Raises LedgerError where that can't be done."""


@dataclass(frozen=True)
class Weights:
    """What a quota draws by: `target` as the ledger knows it, and the shares of top codes and of codes in them."""

    target: str
    tops: tuple[float, ...]
    leaves: Tree
    calibration_id: str | None = None

    def quota(self) -> TreeQuota:
        return TreeQuota(self.tops, self.leaves)

    @property
    def code_shares(self) -> list[float]:
        """The share of each code, of all images."""
        found: dict[int, float] = {}
        for top, leaf in zip(self.tops, self.leaves, strict=True):
            found |= {code: top * share for code, share in leaf.items()}
        return [found[code] for code in range(len(found))]


@dataclass(frozen=True)
class Assigned:
    codes: tuple[int, ...]
    positions: tuple[int | None, ...] | None = None  # in the scope's stream; None for images that are left alone


@dataclass(frozen=True)
class Plan:
    """A request's way to its codes, checked; nothing is drawn yet."""

    n: int
    codes: tuple[int, ...] | None  # None where a quota draws them
    balanced: tuple[int, ...] = ()  # numbers of the images that it draws for; the others get the null code
    scope: str | None = None
    shuffle: bool = False

    @contextmanager
    def draw(self, weights: Weights | None, bundle_id: str, seed: int, ledger: Lender) -> Iterator[Assigned]:
        """The codes, by `weights` where a quota draws them.

        With a scope, the ledger's draws are done when the block ends, and given back where it raises.
        """
        if self.codes is not None or weights is None:
            yield Assigned(self.codes or ())
            return
        count = len(self.balanced)
        order = shuffled(seed, count) if self.shuffle else range(count)
        codes = [NULL_CODE] * self.n
        positions: list[int | None] = [None] * self.n
        if self.scope is None:
            drawn = [code for code, _ in weights.quota().assign(count)]
            for image, i in zip(self.balanced, order, strict=True):
                codes[image] = drawn[i]
            yield Assigned(tuple(codes))
            return
        stream = Stream(bundle_id, self.scope, weights.target, weights.calibration_id)
        with ledger.lease(stream, weights.quota, count) as lease:
            for image, i in zip(self.balanced, order, strict=True):
                codes[image], positions[image] = lease.draws[i].code, lease.draws[i].position
            yield Assigned(tuple(codes), tuple(positions))
            lease.commit()


def check_codes(bundle: Bundle, codes: Sequence[int], field: str) -> None:
    """Raises DdmError for a code that the bundle hasn't got."""
    most = bundle.codes.num_codes
    for i, code in enumerate(codes):
        if not NULL_CODE <= code < most:
            choices = f"-1 (null) to {most - 1}" if most else "-1, the null code: this bundle has no others"
            raise DdmError(f"{field}: image {i} has code {code}; expected {choices}")


def names_top_codes(target: str) -> bool:
    """Whether the target is over top codes, and not over groups."""
    return target == "uniform" or target.lstrip().startswith("code:")


def by_top_codes(tree: Tree, target: str) -> Weights:
    """The weights of "uniform" or "code:0=.3,code:1=.7". Raises DdmError naming `target`."""
    tops = parse_target(target, len(tree))
    if target != "uniform":  # one target, however it is written
        target = ",".join(f"code:{top}={weight!r}" for top, weight in enumerate(tops) if weight)
    return Weights(target, tops, tree)


def by_codes(tree: Tree, target: str, code_weights: Sequence[float], calibration_id: str | None) -> Weights:
    """Weights of the codes themselves: a top code has the sum of its branch, a code its part of that sum."""
    tops = tuple(math.fsum(code_weights[code] for code in branch) for branch in tree)
    leaves = [
        {code: code_weights[code] / top for code in branch} if top else branch
        for top, branch in zip(tops, tree, strict=True)
    ]
    return Weights(target, tops, leaves, calibration_id)


def by_factors(bundle: Bundle, target: str) -> Weights:
    """The weights of "gender:female=.5,gender:male=.5". Raises DdmError naming `target`."""
    codes = bundle.codes
    wanted = parse_factors(target, codes.factors)
    return by_codes(code_tree(bundle), spelled(wanted, codes.factors), cell_weights(codes, wanted, target), None)


def by_names(bundle: Bundle, target: str) -> Weights | None:
    """The weights of a target over top codes or factors; None for one over groups, which only calibrations know.

    Raises DdmError naming `target`.
    """
    if names_top_codes(target):
        return by_top_codes(code_tree(bundle), target)
    return by_factors(bundle, target) if names_factors(target, bundle.codes.factors) else None


def other_names(bundle: Bundle, target: str) -> str:
    """What to add to the refusal of a target over groups, which may have been meant for factors."""
    factors = bundle.codes.factors
    meant = ":" in target or any(value in target for factor in factors for value in factor.values)
    return f" (the bundle's factors are {known(factors)})" if factors and meant else ""


def code_tree(bundle: Bundle) -> Tree:
    """For each top code, its codes with their shares of it."""
    shares: list[dict[int, float]] = [{} for _ in range(bundle.codes.num_top_codes)]
    for leaf in bundle.codes.leaves:
        shares[leaf.top_code][leaf.code] = leaf.share_in_top
    return shares


def shuffled(seed: int, n: int) -> list[int]:
    """A permutation of 0 .. n - 1: by the first 64 bits of Philox with the key `seed` and the counter (i, 0, 0, 2)."""
    zero = np.zeros(1, np.uint64)
    counter = (np.arange(n, dtype=np.uint64), zero, zero, np.full(1, _SHUFFLE, np.uint64))
    r0, r1, _, _ = philox4x32(counter, key_of(np.array([seed], np.uint64)))
    order: list[int] = np.argsort(r0 | r1 << np.uint64(32), kind="stable").tolist()
    return order
