"""`GET /v1/balance`: where the ledger's streams stand, and what a judge sees in the images that were delivered."""

import threading
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.runtime import CodeTable
from ddm_rt.sample.balance.assignment import Lender
from ddm_rt.sample.balance.ledger import Counts, Stream
from ddm_rt.serve.http.schema import (
    Assigned,
    FactorBalance,
    GroupShare,
    JudgeItem,
    MeasuredShares,
    StreamBalance,
    TopCodeShare,
    ValueShare,
)
from ddm_rt.serve.scheduling.stats import Aim, CountsByAim

if TYPE_CHECKING:
    from ddm_rt.evaluate.judge import Judge  # onnxruntime and scipy, which a server without a judge doesn't need


class Measured:
    """Counts of a judge's verdicts. Any number of threads may use it."""

    def __init__(self, judge: "Judge", groups: Sequence[str] | None = None) -> None:
        """`groups` are those of the judge's classes that are reported; None: all of them.

        Raises DdmError for one that the judge doesn't know.
        """
        self.groups = tuple(judge.classes if groups is None else groups)
        for group in self.groups:
            if group not in judge.classes:
                raise DdmError(f"group {group!r} is unknown; judge {judge.name} has: {', '.join(judge.classes)}")
        self._judge = judge
        self._lock = threading.Lock()
        self._counts: CountsByAim[tuple[int, str]] = CountsByAim()  # images of each code and group

    @property
    def about(self) -> JudgeItem:
        return JudgeItem(name=self._judge.name, groups=list(self.groups))

    def judge(self, images: NDArray[np.uint8]) -> list[str]:
        """The group of each image, uint8 [N, H, W, 3]."""
        with self._lock:
            labels: list[str] = self._judge.predict(images).labels.tolist()
        return labels

    def add(self, aim: Aim, codes: Sequence[int], labels: Sequence[str]) -> MeasuredShares:
        """Images that were delivered, by the code of each and what the judge said of it; returns their own shares."""
        own = Counter(zip(codes, labels, strict=True))
        with self._lock:
            self._counts.add(aim, own)
        return self._shares(own)

    def shares(self, aim: Aim) -> MeasuredShares | None:
        """None where nothing was delivered in this scope with this target, or not of late."""
        with self._lock:
            counts = self._counts.of(aim)
        return self._shares(counts) if counts else None

    def _shares(self, counts: Counter[tuple[int, str]]) -> MeasuredShares:
        from ddm_rt.evaluate.intervals import stratified  # here, because scipy takes long to load

        codes = sorted({code for code, _ in counts})
        sizes = np.array([sum(n for (code, _), n in counts.items() if code == wanted) for wanted in codes])
        total = counts.total()
        shares = []
        for group in self.groups:
            own = np.array([counts[code, group] for code in codes])
            images = int(own.sum())
            low, high = stratified(own, sizes)
            shares.append(GroupShare(group=group, images=images, share=images / total, low=low, high=high))
        return MeasuredShares(images=total, groups=shares)


def balances(
    ledger: Lender, codes: CodeTable, scope: str | None = None, measured: Measured | None = None
) -> list[StreamBalance]:
    """Every stream of the ledger, or those of `scope`; `codes` are the bundle's."""
    return [_balance(ledger, stream, codes, measured) for stream in ledger.streams(scope)]


def _balance(ledger: Lender, stream: Stream, codes: CodeTable, measured: Measured | None) -> StreamBalance:
    counts = ledger.counts(stream)
    total = counts.issued.total()
    return StreamBalance(
        scope=stream.scope,
        target=stream.target,
        calibration_id=stream.calibration_id,
        assigned=Assigned(
            issued=total,
            done=counts.done.total(),
            in_progress=counts.leased.total(),
            pooled=counts.pooled.total(),
        ),
        top_codes=[TopCodeShare(top_code=top, **part) for top, part in enumerate(_parts(counts, codes.top_of))],
        factors=[
            FactorBalance(
                factor=factor.name,
                values=[
                    ValueShare(value=value, **part)
                    for value, part in zip(factor.values, _parts(counts, factor.value_of), strict=True)
                ],
            )
            for factor in codes.factors
        ],
        measured=None if measured is None else measured.shares(Aim(stream.scope, stream.target)),
    )


def _parts(counts: Counts, value_of: tuple[int, ...]) -> list[dict[str, Any]]:
    """The images of each value, where `value_of` has the value of each code."""
    issued, done, leased = (_by_value(codes, value_of) for codes in (counts.issued, counts.done, counts.leased))
    total = counts.issued.total()
    return [
        {
            "issued": issued[value],
            "done": done[value],
            "in_progress": leased[value],
            "share": issued[value] / total if total else 0.0,
        }
        for value in range(max(value_of, default=-1) + 1)
    ]


def _by_value(counts: Counter[int], value_of: tuple[int, ...]) -> Counter[int]:
    found: Counter[int] = Counter()
    for code, images in counts.items():
        found[value_of[code]] += images
    return found
