"""The page of the faces experiment: its cells, its bars, and what was measured without diffusion."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from faces_parts.methods import AUDITS, LABELS, methods
from faces_parts.sets import SETS
from store import Line, load, read, table

Cells = Mapping[tuple[str, str], Line]
HEADER = """Cartoon faces at 32x32, 1,250 training images a set, 1,200 steps, one training seed, DDIM 25, n = 1,000.
Shares are as judged, not corrected for the judge (accuracy on 960 held-out faces: gender .977, race .999; corrected
shares are in faces.jsonl). Audits are by this judge, half of them adaptive. Indicator guidance is 1.25, chosen on
another set before the table ("faces: guidance" in codes.jsonl); rows called "unguided" (1.0) were added after it was
seen. "calibrated" keeps weights close to even weights of 16 codes, "calibrated by size" to the codes' sizes, which was
added after it was seen, too. Luminance W1: Wasserstein-1 distance of the cheeks' luminance to the balanced reference.
n_eff: effective number of training images behind the samples. Frechet distances are in the judge's features, no FID.

"""
COLUMNS = (
    *("set", "method", "female / male", "asian / black / brown / white", "gender FD_ddm [95 %]", "race FD_L2 [95 %]"),
    *("Frechet, all", "smallest group (equal n)", "luminance W1", "n_eff"),
)
_SCORES = {"fd_ddm": "FD_ddm", "fd_l2": "FD_L2"}
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


def cells() -> list[tuple[str, str]]:
    """(set, method), the most telling first: what the bars are about, one set after the other, then the rest."""
    every = [(name, method) for name in SETS for method in methods()]
    return sorted(every, key=lambda cell: methods()[cell[1]].kind == "halving")


def page(results: Path) -> str:
    """The table with its bars, then what was measured without diffusion."""
    by_cell = {(line["set"], line["method"]): line for line in read(results / "faces.jsonl")}
    missing = [f"{name} {method}" for name, method in cells() if (name, method) not in by_cell]
    parts = [HEADER, table(COLUMNS, (_row(by_cell[cell]) for cell in cells() if cell in by_cell))]
    parts.append(
        f"\n{len(cells()) - len(missing)} of {len(cells())} cells run. Not run: {'; '.join(missing) or 'none'}.\n\n"
    )
    floors = load("faces: noise floor", results)
    lines = [*bars(by_cell), *(_floor(by_cell, row) for row in (floors["rows"] if floors else ()))]
    parts += [f"{line}\n" for line in lines]
    if draws := load("faces: draws of labels", results):
        parts += ["\nFew-label codes over other draws of labels, by the codes' composition\n\n", _draws_table(draws)]
    if rules := load("faces: rules", results):
        parts += ["\nLabel-free rules, by clustering alone: FD_L2 of gender / race\n\n", rules_table(rules)]
    return "".join(parts)


def _row(line: Line) -> list[str]:
    gender, race = (line["evaluation"][attribute]["raw"] for attribute in ("gender", "race"))
    own = line["evaluation"][SETS[line["set"]].attribute]
    distance, calibration = smallest_distance(line), line.get("calibration")
    return [
        line["set"],
        line["method"],
        " / ".join(f"{share:.3f}" for share in gender["shares"]),
        " / ".join(f"{share:.3f}" for share in race["shares"]),
        f"{gender['scores']['fd_ddm']:.3f} {_interval(gender['fd_ddm_interval'])}",
        f"{race['scores']['fd_l2']:.3f} {_interval(race['fd_l2_interval'])}",
        f"{own['quality']['frechet']:.1f}",
        "too few" if distance is None else f"{distance:.1f} (n = {own['min_per_group']})",
        f"{line['luminance']['wasserstein_1']:.3f}",
        f"{calibration['effective_training_images']:.0f}" if calibration else "",
    ]


def _interval(bounds: Sequence[float]) -> str:
    return f"[{bounds[0]:.3f}, {bounds[1]:.3f}]"


def bars(by_cell: Cells) -> list[str]:
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


def _bar(by_cell: Cells, name: str, kind: str, limit: float | None) -> list[str]:
    scores = [own_score(line) for line in _draws(by_cell, name, kind)]
    if not scores:
        return []
    bound = "" if limit is None else f" at most {limit:.2f}"
    what, each = SETS[name], ", ".join(f"{value:.3f}" for value in scores)
    return [
        f"- {name}, {kind}: {what.attribute} {_SCORES[what.score]}{bound}, mean of {len(scores)} draws: "
        f"{np.mean(scores):.3f} ({each})"
    ]


def _draws(by_cell: Cells, name: str, kind: str) -> list[Line]:
    """The lines of one kind: over draws of labels or audits, or the only one."""
    return [
        by_cell[cell]
        for cell in sorted(by_cell)
        if cell[0] == name and (cell[1] == kind or cell[1].startswith(f"{kind} #"))
    ]


def own_score(line: Line) -> float:
    """The score that the set's bars are in, of the attribute that is out of balance in it; as judged, not corrected."""
    what = SETS[line["set"]]
    return float(line["evaluation"][what.attribute]["raw"]["scores"][what.score])


def smallest_distance(line: Line) -> float | None:
    """Frechet distance of the group that is the smallest in the training set."""
    what = SETS[line["set"]]
    found = line["evaluation"][what.attribute]["per_group"][what.groups.index(what.smallest)]["quality"]
    return None if found is None else float(found["frechet"])


def _against_vanilla(by_cell: Cells, name: str, kind: str) -> float | None:
    vanilla = smallest_distance(by_cell[name, "vanilla"]) if (name, "vanilla") in by_cell else None
    ours = [distance for line in _draws(by_cell, name, kind) if (distance := smallest_distance(line)) is not None]
    return float(np.mean(ours)) / vanilla if vanilla and ours else None


def _floor(by_cell: Cells, floor: Line) -> str:
    vanilla = by_cell.get((floor["set"], "vanilla"))
    distance = vanilla and smallest_distance(vanilla)
    ratio = "" if not distance else f", {floor['mean'] / distance:.2f} of vanilla's"
    return (
        f"- {floor['set']}, noise floor: {floor['n']} real faces ({floor['group']}) that no model has made score "
        f"{floor['mean']:.1f} [{floor['low']:.1f}, {floor['high']:.1f}]{ratio}"
    )


def _draws_table(record: Line) -> str:
    columns = ("set", "labels", "score", "mean", "90 %", "largest", "smallest group's recall", "features chosen")
    rows = []
    for row in record["rows"]:
        chosen = ", ".join(f"{name} {count}" for name, count in row["features_chosen"].items())
        figures = (f"{row[key]:.3f}" for key in ("mean", "p90", "largest"))
        recall = f"{row['smallest_group_recall']:.2f}"
        rows.append((row["set"], row["labels"], _SCORES[row["score"]], *figures, recall, chosen))
    return table(columns, rows)


def rules_table(record: Line) -> str:
    """Gender / race FD_L2 on each set, and the worst of all; a list of a row has a figure for each set."""
    rows = []
    for row in record["rows"]:
        gender, race = row["gender_fd_l2"], row["race_fd_l2"]
        figures = (f"{a:.2f} / {b:.2f}" for a, b in zip(gender, race, strict=True))
        worst, share = max(*gender, *race), np.mean(row["effective_share"])
        rows.append((row["rule"], row["features"], *figures, f"{worst:.2f}", f"{share:.2f}"))
    return table(("rule", "features", *record["sets"], "worst", "n_eff / n"), rows)
