"""What a section found: on disk after every row, so that a section that is stopped keeps what it had."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Record:
    """Rows and facts of one section, with its time budget.

    The file is `{"section", "budget_s", "wall_s", "complete", "facts", "rows", "left_out"}`.
    """

    def __init__(self, name: str, path: Path, budget_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self._name, self._path, self._budget, self._clock = name, path, budget_s, clock
        self._start = clock()
        self._write(complete=False)

    def left(self) -> float:
        """Seconds of the budget that are left; below 0 where it is used up."""
        return self._budget - (self._clock() - self._start)

    def room(self, what: str, seconds: float = 0.0) -> bool:
        """Whether `seconds` are left for `what`; where they aren't, it is recorded as left out."""
        if self.left() > seconds:
            return True
        self.leave_out(f"{what}: no time left")
        return False

    def leave_out(self, what: str) -> None:
        """Record something that isn't measured, with the reason."""
        self.left_out.append(what)
        self._write(complete=False)

    def add(self, **row: Any) -> None:
        """One row of results; it is also printed."""
        self.rows.append(row)
        self._write(complete=False)
        print("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)

    def finish(self) -> None:
        self._write(complete=True)

    def _write(self, *, complete: bool) -> None:
        tree = {
            "section": self._name,
            "budget_s": self._budget,
            "wall_s": round(self._clock() - self._start, 2),
            "complete": complete,
            "facts": self.facts,
            "rows": self.rows,
            "left_out": self.left_out,
        }
        write_json(self._path, tree)


def write(path: Path, text: str) -> None:
    """The file is either what it was or all of `text`. (ddm_rt.bundle's needs pydantic.)"""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def write_json(path: Path, tree: Any) -> None:
    """As `write`; infinities and NaN, for which JSON has no number, become their names."""
    write(path, json.dumps(_named(tree), indent=1, allow_nan=False) + "\n")


def _named(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _named(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_named(value) for value in tree]
    return str(tree) if isinstance(tree, float) and not math.isfinite(tree) else tree


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
