"""Processes that Ray has started, by what they say they are; and their end."""

import os
import signal
from pathlib import Path


def pids(title: str, root: int | None = None) -> list[int]:
    """Of `root`'s descendants whose title begins with `title`; of this process's where there is no `root`."""
    root = os.getpid() if root is None else root
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _title(entry).startswith(title) and _descends(int(entry.name), root):
            found.append(int(entry.name))
    return sorted(found)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _title(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:  # it has just ended
        return ""


def _descends(pid: int, root: int) -> bool:
    while pid > 1:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
        if pid == root:
            return True
    return False
