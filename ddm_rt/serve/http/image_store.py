"""Image files: encoded, and, for those with a URL, kept for minutes under names that nobody can guess."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddm_rt.sample.generation import encoded

_NAME_BYTES = 32
_KEEP_S = 600.0
_MOST_BYTES = 2**28


def picture(
    image: NDArray[np.uint8],
    output_format: str,
    compression: int | None,
    scaled_to: tuple[int, int] | None = None,
    xmp: bytes | None = None,
) -> bytes:
    """A file of one image, uint8 [H, W, 3], as it is or scaled to this width and height. `compression` is the quality
    of "webp" and "jpeg", 0 to 100 (None: 100). `xmp` is what the file says of itself.
    """
    if scaled_to is not None:
        from PIL import Image  # here, because only this needs it

        image = np.asarray(Image.fromarray(image).resize(scaled_to, Image.Resampling.LANCZOS))
    options: dict[str, Any] = {} if output_format == "png" else {"quality": 100 if compression is None else compression}
    return encoded(image, output_format, xmp, **options)


class Kept(NamedTuple):
    content: bytes
    media_type: str
    until: float


class Pictures:
    """Files in memory, by name. Those that are too old go, and the oldest where there are too many bytes."""

    def __init__(
        self, seconds: float = _KEEP_S, most_bytes: int = _MOST_BYTES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds, self._most_bytes, self._clock = seconds, most_bytes, clock
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Kept] = OrderedDict()  # oldest first
        self._bytes = 0

    def keep(self, content: bytes, output_format: str) -> str:
        """Returns the name: 256 random bits, and an ending by which clients name their own files."""
        name = f"{secrets.token_urlsafe(_NAME_BYTES)}.{output_format}"
        with self._lock:
            self._kept[name] = Kept(content, f"image/{output_format}", self._clock() + self._seconds)
            self._bytes += len(content)
            self._sweep()
        return name

    def find(self, name: str) -> Kept | None:
        with self._lock:
            self._sweep()
            return self._kept.get(name)

    def __len__(self) -> int:
        return len(self._kept)

    def _sweep(self) -> None:
        now = self._clock()
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.until > now and self._bytes <= self._most_bytes:
                return
            self._kept.popitem(last=False)
            self._bytes -= len(oldest.content)
