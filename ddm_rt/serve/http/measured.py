"""What a judge sees in the images that were delivered: shares of groups, scope by scope, with their intervals."""

import threading
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.intervals import stratified
from ddm_rt.evaluate.judge import Judge
from ddm_rt.serve.http.schema import GroupShare, JudgeItem, MeasuredShares
from ddm_rt.serve.scheduling.stats import OTHER_SCOPES

_MOST_SCOPES = 1000


class Measured:
    """Counts of a judge's verdicts. Any number of threads may use it."""

    def __init__(self, judge: Judge, groups: Sequence[str] | None = None) -> None:
        """`groups` are those of the judge's classes that are reported; None: all of them.

        Raises DdmError for one that the judge doesn't know.
        """
        self.groups = tuple(judge.classes if groups is None else groups)
        for group in self.groups:
            if group not in judge.classes:
                raise DdmError(f"group {group!r} is unknown; judge {judge.name} has: {', '.join(judge.classes)}")
        self._judge = judge
        self._lock = threading.Lock()
        self._counts: dict[str | None, Counter[tuple[int, str]]] = {}  # scope -> images of each code and group

    @property
    def about(self) -> JudgeItem:
        return JudgeItem(name=self._judge.name, groups=list(self.groups))

    def judge(self, images: NDArray[np.uint8]) -> list[str]:
        """The group of each image, uint8 [N, H, W, 3]."""
        with self._lock:
            labels: list[str] = self._judge.predict(images).labels.tolist()
        return labels

    def add(self, scope: str | None, codes: Sequence[int], labels: Sequence[str]) -> MeasuredShares:
        """Images that were delivered, by the code of each and what the judge said of it; returns their own shares."""
        own = Counter(zip(codes, labels, strict=True))
        with self._lock:
            if scope not in self._counts and len(self._counts) >= _MOST_SCOPES:
                scope = OTHER_SCOPES  # clients name scopes
            self._counts.setdefault(scope, Counter()).update(own)
        return self._shares(own)

    def shares(self, scope: str | None) -> MeasuredShares | None:
        """None where nothing was delivered in this scope."""
        with self._lock:
            counts = self._counts.get(scope, Counter()).copy()
        return self._shares(counts) if counts else None

    def _shares(self, counts: Counter[tuple[int, str]]) -> MeasuredShares:
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
