"""Randomised quotas: every prefix of a stream is close to the target, and which code comes next is drawn.

Nothing calls this yet: requests and ledgers draw by Tijdeman's rule (`quota.py`), here and in the C library.

K codes have whole weights m_k that sum to D, so that code k has the share m_k / D. After any number n of draws its
count x_k is n·m_k / D rounded down or up: it is off by less than one image. Which of the codes that may come next does
come is drawn at random, by Philox from a key and the position. So over many keys each position has each code in about
its share.

May come. Let t·m_k // D be what is due of code k by the time t. The draws to come can keep the bound if and only if

    Σ_k max(x_k, t·m_k // D) ≤ t    for every later time t

as what came already and what falls due until t must fit into t images. This is Hall's condition, if each draw of a code
is a job that takes one image and has a deadline. R. Tijdeman, "The chairman assignment problem", Discrete Mathematics
32 (1980) 323-330, has the jobs' intervals. A code k may come next if x_k < (n + 1)·m_k / D, and if the condition
holds after it. Only times before ⌈(x_k + 1)·D / m_k⌉, when this draw of it would fall due anyway, must be looked at.
A code whose draw would fall due more than `_FAR` images later waits, unless no other code may come. So a share below
1 / 16,384 comes late in its interval.

Chance. A code is ahead when its count was rounded up. If it were drawn without a look at the others, it would be ahead
after n draws with the chance f, the fractional part of n·m_k / D. So one that isn't ahead gets ahead with
(m_k / D) / (1 - f). One whose share passes a whole number comes for sure, or with (f + m_k / D - 1) / f where it is
ahead. The codes that may come are weighted by these chances. With equal shares these are permuted blocks, and with two
codes a random phase. There, and for the first image, each position has exactly the codes' shares. Otherwise the
expected count of a prefix is off by at most .15 of an image in all cases that were tried. An exact law is known offline
only: Gölz, Peters and Procaccia, arXiv 2202.11061.

Beside a total. One stream of many, such as that of one prompt of a scope, draws by what all of them together lack of
each code; its own bound holds all the same. If they lack more than one image of a code that may come, that one comes.

Exact integer arithmetic: weights that are fractions with one small denominator are those, and others are multiples of
2^-48. The bounds hold against the weights as they are stored.
"""

import itertools
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache

import numpy as np

from ddm_rt.errors import DdmError
from ddm_rt.sample.balance.quota import quantise

_SMALL = 1000  # the largest denominator that is looked for
_WHOLE = 1e-9  # how far a weight times a denominator may be from a whole number
_FAR = 2**14  # images: times weights below 2^48, they stay within 64 bits
_PARTS = 40  # bits of a chance
_CODES = 3  # fourth word of the counter; noise has 0, `derive` 1 and shuffles 2
_WORD = 2**32 - 1


class Quota:
    """Draws indices 0 .. len(weights) - 1 in the shares `weights`, one at a time.

    `weights` must be finite, not negative, and sum to 1 within 1e-6 (they are then scaled to 1). An index of weight 0
    is never drawn. Raises DdmError naming `field` and what is wrong.
    """

    def __init__(self, weights: Sequence[float], field: str = "weights") -> None:
        self.weights = whole_weights(weights, field)
        self.denominator = sum(self.weights)
        self.counts = [0] * len(self.weights)
        self._n = 0
        self._live = [k for k, weight in enumerate(self.weights) if weight]
        self._even = len(self._live) < 3 or len({self.weights[k] for k in self._live}) == 1  # what is released may come

    @property
    def bound(self) -> Fraction:
        """The largest distance of a count from its share that can occur, less than 1; 0 for K = 1."""
        return 1 - Fraction(1, self.denominator) if len(self._live) > 1 else Fraction(0)

    def draw(self, words: Iterator[int], total: Sequence[int] | None = None) -> int:
        """The next index, drawn with `words`, random numbers of 64 bits.

        `total` are the counts of all streams together, where this is one of many. Raises DdmError for counts, given to
        `restore`, that no sequence of draws leads to.
        """
        if len(self._live) == 1:
            may = self._live
        else:
            may = self._released()
            if total is not None and sum(total) == self._n:
                total = None  # there is no other stream yet
        chosen = self._pick(may, words, total)
        while not self._even and len(may) > 1 and (full := self._full(chosen)) is not None:
            may = [k for k in may if self._due(k) <= full]
            if not may:
                raise DdmError("counts: no draws lead to them")
            chosen = self._pick(may, words, total)
        self.counts[chosen] += 1
        self._n += 1
        return chosen

    def assign(self, n: int, key: int) -> list[int]:
        """The next `n` draws, as a stream of its own with this key."""
        return [self.draw(words(key, self._n)) for _ in range(n)]

    def restore(self, counts: Sequence[int]) -> None:
        """Go on as after draws with these counts, one per weight.

        Raises DdmError for counts that no sequence of draws leads to.
        """
        if len(counts) != len(self.weights) or not all(type(count) is int and count >= 0 for count in counts):
            raise DdmError(f"counts: expected {len(self.weights)} whole numbers, not negative")
        n, whole = sum(counts), self.denominator
        if any(abs(n * weight - count * whole) >= whole for weight, count in zip(self.weights, counts, strict=True)):
            raise DdmError("counts: further from the weights than any draws could be")
        self.counts, self._n = list(counts), n

    def _released(self) -> list[int]:
        """The codes that may come as far as the next draw alone is looked at, but for those that wait.

        Raises DdmError where more than one of them must come now.
        """
        n, counts, weights, whole = self._n + 1, self.counts, self.weights, self.denominator
        may = [k for k in self._live if counts[k] * whole < n * weights[k]]
        late = [k for k in may if (counts[k] + 1) * whole <= n * weights[k]]
        if len(late) > 1:
            raise DdmError("counts: no draws lead to them")
        return late or self._near(may)

    def _due(self, k: int) -> int:
        """The number of draws by which the next one of `k` must have come."""
        return -(-(self.counts[k] + 1) * self.denominator // self.weights[k])

    def _near(self, may: list[int]) -> list[int]:
        """Without those that fall due much later, unless there are no others: then the one that does so first."""
        last, whole = self._n + _FAR, self.denominator
        near = [k for k in may if (self.counts[k] + 1) * whole <= last * self.weights[k]]
        return near or [min(may, key=self._due)]

    def _full(self, k: int) -> int | None:
        """The first time that has no room for a draw of `k` now; None where there is none."""
        n, span = self._n + 1, self._due(k) - self._n - 1
        if span <= 0:
            return None
        counts, weights, whole = self.counts, self.weights, self.denominator
        live = [(counts[j] + (j == k), weights[j], *divmod(n * weights[j], whole)) for j in self._live]
        ahead, steps, floors, rests = (np.array(column, np.int64)[:, None] for column in zip(*live, strict=True))
        times = np.arange(span, dtype=np.int64)  # after n
        taken = np.maximum(ahead, floors + (rests + times * steps) // whole).sum(0)
        full = np.flatnonzero(taken > times + n)
        return n + int(full[0]) if len(full) else None

    def _pick(self, may: Sequence[int], words: Iterator[int], total: Sequence[int] | None) -> int:
        """One of the codes that may come, without a look at later times."""
        if len(may) == 1:
            return may[0]
        parts = self._parts(may, total)
        if not any(parts):
            return min(may, key=self._due)
        mark = next(words) * sum(parts) >> 64
        for k, end in zip(may, itertools.accumulate(parts), strict=True):
            if mark < end:
                return k
        raise AssertionError("a mark lies below the sum")

    def _parts(self, may: Sequence[int], total: Sequence[int] | None = None) -> list[int]:
        """The chances of codes that may come, in whole numbers of any sum."""
        weights, whole = self.weights, self.denominator
        parts = [0] * len(may)
        if total is not None:
            n = sum(total) + 1
            lacks = [n * weights[k] - total[k] * whole for k in may]
            most = max(lacks)
            parts = [lack == most for lack in lacks] if most > whole else [max(lack, 0) for lack in lacks]
        if not any(parts):
            for i, k in enumerate(may):
                floor, rest = divmod(self._n * weights[k], whole)
                over = rest + weights[k] - whole
                top, bottom = (over, rest) if self.counts[k] > floor else (weights[k], whole - rest)
                parts[i] = (top << _PARTS) // bottom
        return parts


def words(key: int, position: int) -> Iterator[int]:
    """Random numbers of 64 bits for one position of a stream: two of each block j of Philox4x32-10, with the counter
    (position's low word, its high word, j, 3). In plain integers, as numpy's way takes longer for one counter.

    J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    for block in itertools.count():
        a, b, c, d = position & _WORD, position >> 32, block, _CODES
        k0, k1 = key & _WORD, key >> 32
        for _ in range(10):
            left, right = a * 0xD2511F53, c * 0xCD9E8D57
            a, b, c, d = right >> 32 ^ b ^ k0, right & _WORD, left >> 32 ^ d ^ k1, left & _WORD
            k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
        yield a | b << 32
        yield c | d << 32


def whole_weights(weights: Sequence[float], field: str) -> list[int]:
    """Whole numbers in proportion to `weights`; zero stays zero.

    They sum to the smallest denominator that all weights have, up to 1,000, or to 2^48, by largest remainder. Raises
    DdmError naming `field` for weights that are not finite, negative, or don't sum to 1 within 1e-6.
    """
    finest = quantise(weights, field)
    return list(_fractions(tuple(weights)) or finest)


@lru_cache(256)
def _fractions(weights: tuple[float, ...]) -> tuple[int, ...] | None:
    """The weights as fractions with their smallest common denominator; None where it is larger than 1,000."""
    products = np.multiply.outer(np.arange(1, _SMALL + 1), weights)
    nearest = np.rint(products)
    fits = (np.abs(products - nearest) <= _WHOLE).all(1) & (nearest.sum(1) == np.arange(1, _SMALL + 1))
    fits &= ((nearest > 0) | (products == 0)).all(1)
    return tuple(map(int, nearest[fits.argmax()])) if fits.any() else None
