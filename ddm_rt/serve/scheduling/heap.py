"""A heap whose items die in place: dead ones are dropped when they come to the top, or outnumber the others."""

import heapq
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Item = TypeVar("Item", bound=tuple[Any, ...])

_FEW = 64


class LazyHeap(Generic[Item]):
    def __init__(self, dead: Callable[[Item], bool]) -> None:
        self._dead = dead
        self._items: list[Item] = []
        self._most = _FEW

    def __len__(self) -> int:
        """Dead items count until they are dropped."""
        return len(self._items)

    def push(self, item: Item) -> None:
        heapq.heappush(self._items, item)
        if len(self._items) > self._most:
            self._items = [other for other in self._items if not self._dead(other)]
            heapq.heapify(self._items)
            self._most = max(2 * len(self._items), _FEW)

    def top(self) -> Item | None:
        """The least item that isn't dead."""
        while self._items and self._dead(self._items[0]):
            heapq.heappop(self._items)
        return self._items[0] if self._items else None

    def pop(self) -> None:
        """Takes off what `top` gave last."""
        heapq.heappop(self._items)

    def replace(self, item: Item) -> None:
        """`pop`, then `push`."""
        heapq.heapreplace(self._items, item)
