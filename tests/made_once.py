"""What parallel test workers share."""

from collections.abc import Callable
from pathlib import Path


def made_once(place: Path, make: Callable[[Path], object]) -> Path:
    """`place`, which the first of the parallel workers that asks for it makes. The others wait for it."""
    from filelock import FileLock  # torch brings it

    place.parent.mkdir(exist_ok=True)
    with FileLock(place.with_name(f"{place.name}.lock")):
        if not place.exists():
            make(place)
    return place
