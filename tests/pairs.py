"""Fewer cases than all of a product, and yet every two values together."""

from collections.abc import Sequence
from typing import Any


def in_pairs(first: Sequence[Any], middle: Sequence[Any], last: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Every two values of different arguments stand in one case at least. `middle` is the shortest of the three."""
    assert len(middle) <= min(len(first), len(last))
    return [(one, middle[(i + j) % len(middle)], other) for i, one in enumerate(first) for j, other in enumerate(last)]
