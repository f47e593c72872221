"""The processes that a build starts: fed, watched, limited, and reported on when they crash."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ddm_rt.config import Frozen, parse
from ddm_rt.engine.tensorrt.build_worker import Request
from ddm_rt.errors import DdmError
from ddm_rt.kernels.indicator_attention.table import ARCHITECTURES
from ddm_rt.kernels.pack import STEP_OPS

_WORKER = (sys.executable, "-P", "-m", "ddm_rt.engine.tensorrt.build_worker")
_AOT = (sys.executable, "-P", "-m", "ddm_rt.kernels.aot")
_POLL_S = 0.1
_READ_BYTES = 2**16
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_LAST_WORDS = 3  # lines of a crashed builder that an error repeats
_LINE = 240  # characters of each


class Result(Frozen):
    """What a worker tells of a finished build."""

    profiles: tuple[dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]], ...]
    figures: dict[str, float]


def run(request: Request, flavour: str, memory_gib: float | None, progress: Callable[[str], None]) -> Result:
    """Build `request` in a process of its own that may hold `memory_gib` GiB of resident memory; by default half of
    what this machine has available, and no more than the control group's limit.

    The limit is watched from outside, on Linux: CUDA maps far more addresses than it uses, so a limit on those says
    nothing. `progress` gets the phase and the seconds since the start. The process is gone when this returns.

    Raises DdmError naming the graph: it was refused, the process crashed, or it grew over the limit.
    """
    started, logs, outcome = time.monotonic(), deque[str](maxlen=_LAST_WORDS), dict[str, Any]()
    phase, unread = "start", b""
    limit, whose = (memory_gib * 2**30, "--memory-gib") if memory_gib is not None else allowance()
    with (
        tempfile.TemporaryFile() as stderr,
        subprocess.Popen(
            _WORKER,
            bufsize=0,
            stdin=subprocess.PIPE,  # stays open: the worker ends when it does
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
            start_new_session=True,  # Ctrl-C is ours to pass on
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it ended before it read; its exit code says how
                process.stdin.write(request.model_dump_json().encode() + b"\n")
            while True:
                if select.select([process.stdout], [], [], _POLL_S)[0]:
                    if not (chunk := process.stdout.read(_READ_BYTES)):
                        break
                    *lines, unread = (unread + chunk).split(b"\n")
                    for event in map(json.loads, lines):
                        outcome |= event
                        if "phase" in event:
                            count = f" {event['done']}/{event['total']}" if event.get("total") else ""
                            phase = event["phase"] + count
                        elif "log" in event:
                            logs.append(event["log"])
                progress(f"{phase}, {time.monotonic() - started:.0f} s")
                if (held := resident_bytes(process.pid)) > limit:
                    raise DdmError(
                        f"{request.graph}: building it for {flavour} holds {held / 2**30:.2f} GiB of memory; "
                        f"the limit is {limit / 2**30:.3g} GiB ({whose}); a larger --memory-gib raises it"
                    )
            code = process.wait()
        finally:
            process.kill()
        if "refused" in outcome:
            said = "" if not logs or ":" in outcome["refused"] else f": {_last_words(b'', logs)}"
            raise DdmError(f"{request.graph}: {flavour} refused it: {outcome['refused']}{said}")
        if "failed" in outcome:
            raise DdmError(f"{request.graph}: its plan could not be written: {outcome['failed']}")
        if code != 0 or "result" not in outcome:
            stderr.seek(0)
            words = _last_words(stderr.read(), logs) or "it said nothing"
            raise DdmError(f"{request.graph}: the builder of {flavour} {_death(code)} in {phase}; last words: {words}")
    return parse(Result, outcome["result"], f"{request.graph}: result of the build")


def kernels(out: Path, architecture: str, progress: Callable[[str], None]) -> str | None:
    """Compile what a step needs for the architecture into a pack at `out`; None, or why there is no pack. It needs
    triton.

    Raises DdmError where the compiler fails: that isn't a plan to be shipped without a word.
    """
    if architecture not in ARCHITECTURES:
        return f"no kernels are shipped for {architecture}"
    progress(" and ".join(STEP_OPS))
    command = [*_AOT, "--arch", architecture, "--ops", ",".join(STEP_OPS), "--out", str(out)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), start_new_session=True, check=False
    )
    if done.returncode != 0:
        words = _last_words(done.stderr)
        raise DdmError(f"kernels of {architecture}: the compiler {_death(done.returncode)}; last words: {words}")
    return None


def _environment() -> dict[str, str]:
    """What a child sees: kernels are compiled there, whatever Triton does in this process."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def allowance(root: Path = Path("/")) -> tuple[float, str]:
    """Bytes that a build may hold where nobody says, and what they are. No limit where the system doesn't tell. `root`
    is where `proc` and `sys` lie.
    """
    available = (line.split() for line in _lines(root / "proc/meminfo") if line.startswith("MemAvailable:"))
    limits = [(int(fields[1]) * 2**10 / 2, "half of what was available") for fields in available]
    limits += [(left / 2, "half of what its control group may still hold") for left in _left_in_groups(root)]
    return min(limits, default=(float("inf"), ""))


def _left_in_groups(root: Path) -> Iterator[float]:
    """Bytes that are left in the control groups of this process and in those around them; of either version."""
    for line in _lines(root / "proc/self/cgroup"):
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "memory" not in controllers.split(","):
            continue
        mount = "memory" if controllers else ""
        most, held = ("limit_in_bytes", "usage_in_bytes") if controllers else ("max", "current")
        top = root / "sys/fs/cgroup" / mount
        for folder in (top / path.strip("/"), *(top / path.strip("/")).parents):
            limits, used = (_numbers(folder / f"memory.{name}") for name in (most, held))
            yield from (max(limit - sum(used), 0.0) for limit in limits)
            if folder == top:
                break


def _numbers(path: Path) -> list[float]:
    return [float(text) for text in _lines(path) if text.isdigit()]


def _lines(path: Path) -> list[str]:
    """Of a file of the system's; none where it isn't there."""
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []


def resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 where the system doesn't tell, or the process has ended."""
    fields = [number for line in _lines(Path(f"/proc/{pid}/statm")) for number in line.split()]
    return int(fields[1]) * _PAGE_BYTES if len(fields) > 1 else 0


def _death(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed ({name}; out of memory, if nobody did it)" if name == "SIGKILL" else f"crashed ({name})"


def _last_words(said: bytes, logs: Iterable[str] = ()) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()][-_LAST_WORDS:]
    return " | ".join(" ".join(line.split())[:_LINE] for line in (*lines, *logs))
