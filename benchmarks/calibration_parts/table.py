"""The published table, made from the record."""

import json
from pathlib import Path
from typing import Any

from calibration_parts.study import ESTIMATORS

_HEAD = """# Calibration: error of the achieved share

`python benchmarks/calibration.py --work DIR`; bundle `{bundle}`, judge `{judge}`, groups {groups}, {draws} draws of the
audits from {pool_per_code} generated images per code (half for audits, half for the truth); {machine}.

Error is |achieved - target| of the share of {first}, mean and 90th percentile over the draws; "refused" is how often
the target was called out of reach (its error is then that of the nearest weights, and counts in the mean). Audits are
drawn evenly over the codes, or half evenly and half by the weights so far; with 16 audits and 16 codes nothing is left
for the second half. Effective training images are Kish's. Slant (degrees) and thickness (pixels) are means.
"None" is the uniform target, which knows nothing of the groups.

In the mixed codes, code k takes (k mod 4)/8 of its images from all codes alike, so that codes are impure and differ.
"""
_COLUMNS = (
    *("target", "audits", "drawn", "error", "90th percentile", "refused", "effective codes"),
    *("effective training images", "slant", "thickness"),
)


def markdown(path: Path) -> str:
    """The table of the record at `path`."""
    record: dict[str, Any] = json.loads(path.read_bytes())
    first, *_ = record["groups"]
    parts = [_HEAD.format(**(record | {"groups": ", ".join(record["groups"]), "first": first}))]
    for name, codes in record["codes"].items():
        shares = ", ".join(f"{share:.2f}" for share in codes["p"])
        parts.append(f"\n## {name.capitalize()} codes\n\nShare of {first} in each code: {shares}.\n")
        chosen = [row for row in record["rows"] if row["codes"] == name]
        default = next(iter(ESTIMATORS))
        parts.append(_table([row for row in chosen if row.get("estimator", default) == default]))
        parts.append("\nOther estimators, half drawn by weights (error, 90th percentile):\n")
        parts.append(_estimators(chosen))
    return "\n".join(parts) + "\n"


def _table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|" + " --- |" * len(_COLUMNS)]
    for row in rows:
        audited = bool(row["n"])
        cells = [
            f"{row['target']:g}",
            str(row["n"]) if audited else "none",
            row["scheme"] if audited else "",
            f"{row['error']:.3f}",
            f"{row['error_p90']:.3f}" if audited else "",
            f"{row['refused']:.0%}" if audited else "",
            f"{row['effective_codes']:.1f}",
            f"{row['effective_images']:.0f}",
            f"{row['slant']:.1f}",
            f"{row['thickness']:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _estimators(rows: list[dict[str, Any]]) -> str:
    settings = sorted({(row["target"], row["n"]) for row in rows if row["n"]})
    lines = ["| target | audits | " + " | ".join(ESTIMATORS) + " |", "|" + " --- |" * (2 + len(ESTIMATORS))]
    for target, n in settings:
        found = {
            row["estimator"]: f"{row['error']:.3f}, {row['error_p90']:.3f}"
            for row in rows
            if (row["target"], row["n"], row.get("scheme")) == (target, n, "half by weights")
        }
        lines.append(f"| {target:g} | {n} | " + " | ".join(found[name] for name in ESTIMATORS) + " |")
    return "\n".join(lines)
