"""Measured figures: lines of JSON, one file for a theme. `results/README.md` says what each file holds.

A study that is one command is kept as a record: its first line has what holds for all of it (command, machine, commit),
each line below one of its `rows`. Experiments of many cells have a line for each cell. Numbers are rounded to 7 digits.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddm_rt.files import lock, write_atomic

Line = dict[str, Any]
RESULTS = Path(__file__).parent / "results"

# Study -> the file that it shares with others of its theme.
_FILES = {
    **dict.fromkeys(("code rules", "indicator"), "codes"),
    **dict.fromkeys(("faces: guidance", "faces: noise floor", "faces: draws of labels", "faces: rules"), "codes"),
    "calibration": "calibration",
    **dict.fromkeys(("drift", "drift gate", "precision"), "drift"),
    "fair throughput": "fair_throughput",
    **dict.fromkeys(("footprint", "embedding", "hoisting", "throughput"), "speed"),
    **dict.fromkeys(("serving", "ledger", "malformed", "attacks"), "serving"),
    "object storage": "object_storage",
    "splits": "splits",
    **dict.fromkeys(("full size", "full size SD"), "full_size"),
}


def read(path: Path) -> list[Line]:
    """The lines of a file; none where there is no file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def put(path: Path, made: Sequence[Line], *key: str) -> None:
    """Put lines where the file has lines with the same values under `key`, else at its end.

    Several processes may do so at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = [_values(line, key) for line in made]
    handle = lock(path.parent)
    try:
        there = read(path)
        at = next((i for i, line in enumerate(there) if _values(line, key) in keys), len(there))
        after = [line for line in there[at:] if _values(line, key) not in keys]
        write_atomic(path, "".join(map(_text, [*there[:at], *made, *after])))
    finally:
        os.close(handle)


def _values(line: Line, key: Sequence[str]) -> list[Any]:
    return [line[name] for name in key]


def _text(line: Line) -> str:
    return json.dumps(rounded(line), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def rounded(tree: Any, digits: int = 7) -> Any:
    """JSON whose numbers have so many significant digits; whole numbers are left."""
    if isinstance(tree, float):
        return float(f"{tree:.{digits}g}")
    if isinstance(tree, Mapping):
        return {name: rounded(value, digits) for name, value in tree.items()}
    return [rounded(value, digits) for value in tree] if isinstance(tree, list | tuple) else tree


def save(study: str, record: Mapping[str, Any], results: Path = RESULTS) -> None:
    """Keep a study's record in place of an earlier one."""
    head = {name: value for name, value in record.items() if name != "rows"}
    lines = [{"study": study, **line} for line in (head, *record.get("rows", ()))]
    put(results / f"{_FILES[study]}.jsonl", lines, "study")


def load(study: str, results: Path = RESULTS) -> Line | None:
    """A study's record with its `rows`; None where it was never made."""
    lines = [line for line in read(results / f"{_FILES[study]}.jsonl") if line.pop("study") == study]
    return {**lines[0], "rows": lines[1:]} if lines else None


# Targets are even and intervals are at 95 %, with the default seed of the bootstrap.
_DROPPED = ("schema_version", "target", "confidence", "seed", "group_counts")
_PER_GROUP = ("n", "frechet", "precision", "recall")


def of_evaluation(figures: Mapping[str, Any]) -> Line:
    """What is kept of an `Evaluation` in JSON: not what follows from the rest, or is the same in all of them.

    `codes` are lists: code, images judged as each group, images of no group.
    """
    kept = {name: value for name, value in figures.items() if name not in _DROPPED and value not in (None, [])}
    kept["neither"] = {name: figures["neither"][name] for name in ("share", "interval")}
    kept["raw"] = of_balance(figures["raw"])
    if figures["corrected"]:
        kept["corrected"] = of_balance(figures["corrected"])
        del kept["corrected"]["intervals"]
    kept["per_group"] = [
        {"group": entry["group"], "quality": entry["quality"] and {name: entry["quality"][name] for name in _PER_GROUP}}
        for entry in figures["per_group"]
    ]
    kept["judge"] = {name: figures["judge"][name] for name in ("name", "accuracy")}
    kept["judge"]["sha256"] = figures["judge"]["sha256"][:12]
    if figures["codes"]:
        kept["codes"] = [[row["code"], *row["counts"], row["neither"]] for row in figures["codes"]]
    return kept


def of_balance(figures: Mapping[str, Any]) -> Line:
    """What is kept of a `Balance` in JSON: shares, the two scores that tables have, and intervals.

    Of two groups FD_L2 is √2 times FD_ddm, and so is its interval, which is left out.
    """
    kept = {name: value for name, value in figures.items() if value is not None}
    kept["scores"] = {name: figures["scores"][name] for name in ("fd_l2", "fd_ddm")}
    if "fd_ddm_interval" in kept:
        del kept["fd_l2_interval"]
    return kept


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table in markdown."""
    names = list(columns)
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in (names, ["---"] * len(names), *rows))
