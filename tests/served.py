"""`ddm-rt serve` in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from patience import PATIENCE_S


@contextmanager
def serving(*arguments: str, prefix: tuple[str, ...] = (), **environment: str) -> Iterator[str]:
    """A server with these arguments on a free loopback port, by its address; it gets SIGTERM at the end. `prefix` is
    a command that runs the server's.
    """
    command = [*prefix, sys.executable, "-P", "-m", "ddm_rt.cli", "serve", *arguments, "--port", "0"]
    with tempfile.TemporaryFile("w+") as said:
        environ = os.environ | environment
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True, env=environ)
        assert process.stdout is not None
        try:
            found = None
            for line in process.stdout:  # it ends where the process does
                if (found := re.search(r"look at: (\S+)/$", line.strip())) is not None:
                    break
            if found is None:
                said.seek(0)
                raise AssertionError(said.read()[-2000:])
            yield found[1]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=PATIENCE_S)
