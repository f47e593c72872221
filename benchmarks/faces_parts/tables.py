"""The table and its bars in markdown, from the cells' JSON trees."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from faces_parts import floor
from faces_parts.methods import AUDITS, LABELS
from faces_parts.sets import ATTRIBUTES, SETS

Row = dict[str, Any]
COLUMNS = (
    "set",
    "method",
    "female / male",
    "asian / black / brown / white",
    "gender FD_ddm [95 %]",
    "race FD_L2 [95 %]",
    "Frechet, all",
    "smallest group (equal n)",
    "luminance W1",
    "n_eff",
)

KINDS = tuple(
    f"{kind} {count}"
    for kind, counts in (
        ("few-label", LABELS),
        ("calibrated", AUDITS),
        ("calibrated by size", AUDITS),
        ("unguided few-label", LABELS),
        ("unguided calibrated by size", AUDITS),
    )
    for count in counts
)


def table(rows: Sequence[Row], cells: Sequence[tuple[str, str]], floors: dict[str, Any]) -> str:
    """One row per cell that was run, those that weren't, the bars that were set beforehand, and the noise floors."""
    by_cell = {(row["set"], row["method"]): row for row in rows}
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line(_figures(by_cell[cell])) for cell in cells if cell in by_cell]
    missing = [f"{name} {method}" for name, method in cells if (name, method) not in by_cell]
    lines += ["", f"{len(cells) - len(missing)} of {len(cells)} cells run. Not run: {'; '.join(missing) or 'none'}."]
    lines += ["", *bars(by_cell)]
    for name, figures in floors.items():
        vanilla = by_cell.get((name, "vanilla"))
        lines.append(floor.line(name, figures, vanilla and smallest_distance(vanilla)))
    return "\n".join(lines) + "\n"


def bars(by_cell: dict[tuple[str, str], Row]) -> list[str]:
    """Each target beside what was reached: means over the draws that were run."""
    found = []
    for name, what in SETS.items():
        limits = (0.06, 0.04) if what.score == "fd_ddm" else (0.08, 0.06)
        for count, limit in zip(LABELS, limits, strict=True):
            found += _bar(by_cell, name, f"few-label {count}", limit)
        found += _bar(by_cell, name, f"calibrated {AUDITS[0]}", 0.12 if what.score == "fd_ddm" else 0.17)
        found += _bar(by_cell, name, f"calibrated {AUDITS[1]}", None)
        for kind in KINDS[4:]:
            found += _bar(by_cell, name, kind, None)
        found += [
            f"- {name}, {kind}: the smallest group's Frechet distance over vanilla's, at most .60: {ratio:.2f}"
            for kind in (*KINDS, "oracle")
            if (ratio := _against_vanilla(by_cell, name, kind)) is not None
        ]
    return found


def _bar(by_cell: dict[tuple[str, str], Row], name: str, kind: str, limit: float | None) -> list[str]:
    scores = [own_score(row) for row in _draws(by_cell, name, kind)]
    if not scores:
        return []
    bound = "" if limit is None else f" at most {limit:.2f}"
    score = "FD_ddm" if SETS[name].score == "fd_ddm" else "FD_L2"
    each = ", ".join(f"{value:.3f}" for value in scores)
    return [f"- {name}, {kind}: {SETS[name].attribute} {score}{bound}, mean of {len(scores)} draws: "
            f"{np.mean(scores):.3f} ({each})"]  # fmt: skip


def _draws(by_cell: dict[tuple[str, str], Row], name: str, kind: str) -> list[Row]:
    """The rows of one kind: over draws of labels or audits, or the only one."""
    return [
        row
        for (where, method), row in by_cell.items()
        if where == name and (method == kind or method.startswith(f"{kind} #"))
    ]


def own_score(row: Row) -> float:
    """The score that the set's bars are in, of the attribute that is out of balance in it; as judged, not corrected."""
    what = SETS[row["set"]]
    return float(row["evaluation"][what.attribute]["raw"]["scores"][what.score])


def smallest_distance(row: Row) -> float | None:
    """Frechet distance of the group that is the smallest in the training set."""
    what = SETS[row["set"]]
    found = row["evaluation"][what.attribute]["per_group"][what.groups.index(what.smallest)]["quality"]
    return None if found is None else float(found["frechet"])


def _against_vanilla(by_cell: dict[tuple[str, str], Row], name: str, kind: str) -> float | None:
    vanilla = smallest_distance(by_cell[name, "vanilla"]) if (name, "vanilla") in by_cell else None
    ours = [distance for row in _draws(by_cell, name, kind) if (distance := smallest_distance(row)) is not None]
    return float(np.mean(ours)) / vanilla if vanilla and ours else None


def _figures(row: Row) -> list[str]:
    raw = {attribute: row["evaluation"][attribute]["raw"] for attribute in ATTRIBUTES}
    gender, race = raw["gender"], raw["race"]
    own = row["evaluation"][SETS[row["set"]].attribute]
    distance, calibration = smallest_distance(row), row["calibration"]
    return [
        row["set"],
        row["method"],
        " / ".join(f"{share:.3f}" for share in gender["shares"]),
        " / ".join(f"{share:.3f}" for share in race["shares"]),
        f"{gender['scores']['fd_ddm']:.3f} {_interval(gender['fd_ddm_interval'])}",
        f"{race['scores']['fd_l2']:.3f} {_interval(race['fd_l2_interval'])}",
        f"{own['quality']['frechet']:.1f}",
        "too few" if distance is None else f"{distance:.1f} (n = {own['min_per_group']})",
        f"{row['luminance']['wasserstein_1']:.3f}",
        f"{calibration['effective_training_images']:.0f}" if calibration else "",
    ]


def _interval(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def _line(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"
