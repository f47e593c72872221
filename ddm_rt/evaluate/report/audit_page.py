"""An audit for people: a table in the terminal, one page, and the same figures as JSON and as a model card."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddm_rt.evaluate.audit.card import card, monitoring
from ddm_rt.evaluate.audit.record import Audit
from ddm_rt.evaluate.audit.words import PLAIN, QUALITY, interval_text, number, quality_rows, verdict_text
from ddm_rt.evaluate.report import page
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.evaluate.report.plots import group_chart

AUDIT, CARD = "audit.json", "README.md"
_COLUMNS = 12


def write(audit: Audit, pictures: NDArray[np.uint8], out_dir: Path) -> Path:
    """index.html, audit.json and README.md (the card) into `out_dir`, all or none; returns the path of index.html.

    Raises DdmError when `out_dir` exists and is not empty.
    """
    data = audit.model_dump_json(indent=1)
    return page.write(out_dir, "audit.html", _shown(audit, pictures), AUDIT, data, card=(CARD, card(audit)))


def terminal_tables(audit: Audit) -> list[Columns]:
    """Shares and distances of each attribute and crossing."""
    rows = audit.measured
    figures: list[tuple[str, list[str]]] = []
    for name in ("FD_ddm", "FD_L2", "demographic_parity_difference", "demographic_parity_ratio"):
        cells = []
        for each in rows:
            found = next((figure for figure in each.figures if figure.name == name), None)
            cells.append("–" if found is None else f"{number(found.value)} {interval_text(found.interval)}".strip())
        if set(cells) != {"–"}:
            figures.append((name.replace("_", " ") if name.startswith("demo") else name, cells))
    smallest = [min(each.shares, key=lambda share: share.share) for each in rows]
    figures.append(("smallest group", [f"{share.group} {number(share.share)}" for share in smallest]))
    figures.insert(0, ("images", [str(each.inside) for each in rows]))
    notes = "As judged, with 95 % intervals, over the images that belong to some group."
    return [Columns({"attribute": [each.name for each in rows]}, figures, notes)]


def _shown(audit: Audit, pictures: NDArray[np.uint8]) -> dict[str, object]:
    """What templates/audit.html shows."""
    charts = {}
    for each in audit.measured:
        alt = "; ".join(f"{share.group} {number(share.share)} {interval_text(share.interval)}" for share in each.shares)
        what = f"share among {each.inside} images of some group"
        charts[each.name] = group_chart(each.shares, what, f"Shares of {each.name}. {alt}")
    about = audit.about
    return {
        "title": f"Audit of {audit.title}",
        "audit": audit,
        "charts": charts,
        "plain": PLAIN,
        "verdict_text": verdict_text,
        "quality_heads": list(QUALITY),
        "quality_rows": quality_rows,
        "images": pictures,
        "columns": _COLUMNS,
        "purpose": about.told(
            *("model", "version", "provider", "licence", "base_model", "intended_use", "excluded_use"),
            *("people_affected", "contact"),
        ),
        "origin": about.told("training_data", "labelling", "representativeness", "gaps", "mitigation"),
        "factors": about.told("groups_defined_by"),
        "approved": about.told("rule_approved_by"),
        "residual": about.told("residual_risk"),
        "monitoring": monitoring(audit),
    }
