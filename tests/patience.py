"""How long tests wait for what comes within moments on an idle machine."""

import time
from collections.abc import Callable

# Nobody measures with it: who waits this long has failed, however busy the machine is.
PATIENCE_S = 120.0


def settled(condition: Callable[[], bool]) -> bool:
    """Whether `condition` comes true."""
    end = time.monotonic() + PATIENCE_S
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    return condition()
