"""From the command to the first image."""

import statistics
import time
from typing import Any

from serving_parts.clients import Load, asked
from serving_parts.servers import commanded


def cold(starts: int) -> dict[str, Any]:
    """Seconds from the start of `ddm-rt serve` to the first image, and to the line that says where to look."""
    first_image, ready = [], []
    for number in range(starts):
        start = time.monotonic()
        with commanded() as server:
            ready.append(time.monotonic() - start)
            answers = asked(Load(server.port, 1, 0.5, sizes=(1, 1), steps=(25,), seed=number))
        if answers[0].status != 200:
            raise RuntimeError(f"the first request was answered with {answers[0].status}")
        # Without the start of the client's process, which comes between.
        first_image.append(ready[-1] + answers[0].seconds)
    return {
        "first_image_p50_s": round(statistics.median(first_image), 2),
        "ready_p50_s": round(statistics.median(ready), 2),
        "first_image_longest_s": round(max(first_image), 2),
    }
