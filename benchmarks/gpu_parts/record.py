"""What a section found: on disk after every row, so that a section that is stopped keeps what it had."""

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RAISED = "raised"  # in a row: the exception in place of a figure


class Record:
    """Rows and facts of one section, with its time budget.

    The file is `{"section", "key", "budget_s", "wall_s", "complete", "facts", "rows", "left_out"}`. Rows of an earlier
    process of the same `key` (commit, machine, versions) are kept, but for those that say what it raised. `stamp` goes
    into every row.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
        *,
        key: Mapping[str, Any] | None = None,
        stamp: Mapping[str, Any] | None = None,
    ) -> None:
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self._name, self._path, self._budget, self._clock = name, path, budget_s, clock
        self.folder = path.parent  # where the other sections' files are
        self.key, self._stamp = dict(key or {}), dict(stamp or {})
        self._start, self._before = clock(), 0.0
        self._short = False  # whether a later process has something to do
        earlier = read(path)
        if key is not None and earlier.get("key") == _named(self.key):
            self.rows = [row for row in earlier["rows"] if RAISED not in row]
            self.facts, self._before = earlier["facts"], earlier["wall_s"]
        self._write(complete=False)

    def left(self) -> float:
        """Seconds of the budget that are left; below 0 where it is used up."""
        return self._budget - (self._clock() - self._start)

    def room(self, what: str, seconds: float = 0.0) -> bool:
        """Whether `seconds` are left for `what`; where they aren't, it is recorded as left out."""
        if self.left() > seconds:
            return True
        self.postpone(f"{what}: no time left")
        return False

    def has(self, **identity: Any) -> bool:
        """Whether there is a row with these values already."""
        wanted = _named(identity)
        return any(_is_of(row, wanted) for row in self.rows)

    def leave_out(self, what: str) -> None:
        """Record something that isn't measured, with the reason."""
        self.left_out.append(what)
        self._write(complete=False)

    def postpone(self, what: str) -> None:
        """As `leave_out`, of something that a later process can measure: the section isn't complete without it."""
        self._short = True
        self.leave_out(what)

    def add(self, **row: Any) -> None:
        """One row of results; it is also printed."""
        self.add_all([row])

    def add_all(self, rows: list[dict[str, Any]]) -> None:
        """Rows that were measured together: either all of them are kept or none."""
        self.rows += [row | self._stamp for row in rows]
        self._write(complete=False)
        for row in rows:
            print("  " + ", ".join(f"{k} {_short(v)}" for k, v in row.items()), flush=True)

    def replace(self, rows: list[dict[str, Any]], **identity: Any) -> None:
        """As `add_all`, in place of all rows with these values."""
        wanted = _named(identity)
        self.rows = [row for row in self.rows if not _is_of(row, wanted)]
        self.add_all(rows)

    def raised(self, error: Exception, **row: Any) -> None:
        """A row for what couldn't be measured, with the reason. A later process tries it again."""
        self._short = True
        self.add(**row, **{RAISED: f"{type(error).__name__}: {str(error).strip()[-400:]}"})

    def finish(self) -> None:
        """The section has come to its end. It is complete where no row waits for another process."""
        self._write(complete=not self._short)

    def _write(self, *, complete: bool) -> None:
        tree = {
            "section": self._name,
            "key": self.key,
            "budget_s": self._budget,
            "wall_s": round(self._before + self._clock() - self._start, 2),
            "complete": complete,
            "facts": self.facts,
            "rows": self.rows,
            "left_out": self.left_out,
        }
        write_json(self._path, tree)


def read(path: Path) -> dict[str, Any]:
    """A section's file; empty where there is none, or none that can be read."""
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree


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


def _is_of(row: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(_named(row.get(key)) == value for key, value in wanted.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
