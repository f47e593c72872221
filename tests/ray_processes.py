"""Processes that Ray has started for this one, by what they say they are; and their end."""

import os
import signal
from pathlib import Path


def pids(title: str) -> list[int]:
    """Of this process's descendants whose title begins with `title`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _title(entry).startswith(title) and _descends(int(entry.name)):
            found.append(int(entry.name))
    return sorted(found)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _title(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has just ended
        return ""


def _descends(pid: int) -> bool:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid == os.getpid():
            return True
    return False
