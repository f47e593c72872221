"""`ddm-rt serve digits` as a process of its own, for clients that nobody here wrote."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def served_digits(*options: str) -> Iterator[str]:
    """On a free port, with one thread. What clients take as their base URL."""
    line = [sys.executable, "-P", "-m", "ddm_rt.cli", "serve", "digits", "--port", "0", "--threads", "1", *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "digits is served\n"
            server.stdout.readline()  # where its page is
            yield server.stdout.readline().removeprefix("clients: ").strip()
        finally:
            server.kill()
