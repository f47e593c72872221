"""How long tests wait for what comes within moments on an idle machine."""

import time
from collections.abc import Callable

# Nobody measures with it: who waits this long has failed, however busy the machine is.
PATIENCE_S = 120.0


def settled(condition: Callable[[], object], limit_s: float = PATIENCE_S) -> bool:
    """Whether `condition` comes true."""
    end, pause_s = time.monotonic() + limit_s, 0.001
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.02)
    return bool(found)
