"""Which code each image of a request gets: given, none, or drawn by a quota, of the request alone or of a scope."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ddm_rt.bundle import Bundle
from ddm_rt.config import NULL_CODE, Balance
from ddm_rt.errors import DdmError
from ddm_rt.kernels.philox import key_of
from ddm_rt.sample.balance.ledger import Stream
from ddm_rt.sample.balance.lending import Lender
from ddm_rt.sample.balance.quota import TreeQuota, parse_target
from ddm_rt.sample.loop.noise import philox4x32

_SHUFFLE = 2  # fourth word of the counter; noise has 0, `derive` has 1
_SCOPE_LENGTH = 200

Tree = Sequence[Mapping[int, float]]  # for each top code, its codes with their shares of it


@dataclass(frozen=True)
class Weights:
    """What a quota draws by: `target` as the ledger knows it, and the shares of top codes and of codes in them."""

    target: str
    tops: tuple[float, ...]
    leaves: Tree
    calibration_id: str | None = None

    def quota(self) -> TreeQuota:
        return TreeQuota(self.tops, self.leaves)


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


def plan(
    bundle: Bundle,
    *,
    n: int,
    codes: Sequence[int] | None,
    target: str,
    balance: Balance,
    scope: str | None,
    shuffle: bool,
    left_alone: Sequence[int] = (),
    prompts: int = 1,
) -> Plan:
    """Checks what a request says about its codes; images in `left_alone` get none.

    Where the images take `prompts` prompts in turn, each prompt has a run of the codes drawn: in the order of the
    images two prompts would have one of two top codes each. Raises DdmError naming the argument that doesn't fit.
    """
    known = bundle.codes
    quota = codes is None and balance is not Balance.OFF and known.num_codes > 0
    if balance is Balance.ON and not quota:
        reason = "codes are given" if codes is not None else "the bundle has no codes"
        raise DdmError(f'balance is "on", but {reason}; expected "off" or "auto"')
    if scope is not None and not (0 < len(scope) <= _SCOPE_LENGTH and scope.isprintable()):
        raise DdmError(f"scope is {scope!r}; expected 1 to {_SCOPE_LENGTH} printable characters")
    if quota:
        alone = set(left_alone)
        balanced = tuple(i for first in range(prompts) for i in range(first, n, prompts) if i not in alone)
        return Plan(n, None if balanced else (NULL_CODE,) * n, balanced, scope, shuffle)
    for field, value, default in (("target", target, "uniform"), ("scope", scope, None), ("shuffle", shuffle, False)):
        if value != default:
            raise DdmError(f"{field} is {value!r}, but no quota draws the codes of this request")
    given = (NULL_CODE,) * n if codes is None else tuple(int(code) for code in codes)
    if len(given) != n:
        raise DdmError(f"codes has {len(given)} entries; expected n = {n}")
    check_codes(bundle, given, "codes")
    if balance is Balance.OFF and set(given) != {NULL_CODE}:
        raise DdmError('balance is "off", which means the null code (-1); leave it at "auto" to give codes')
    return Plan(n, given)


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
