"""An evaluation for people and machines: a table in the terminal, and one page with the same figures as JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.evaluation import Evaluation
from ddm_rt.evaluate.report import page
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.evaluate.report.plots import share_chart

GRID_IMAGES = 48
GRID_COLUMNS = 8
EXEMPLARS = 8

# What every report says, whatever its figures are.
LIMITS = (
    "Balance is over discovered modes (codes). A code is a mode of the training images, not a group; parity "
    "over a named attribute is not claimed without an audit of that attribute.",
    "No figure here that needs no labels can tell whether the codes followed a background, a pose or another "
    "property instead of the attribute that one has in mind.",
    "Shares are a judge's verdicts. The judge errs; corrected shares take its error rates on real images as "
    "valid for generated ones, and their intervals hold how well finitely many real images tell those rates.",
    "Intervals cover the drawing of images from one trained model per method, not the training of another.",
    "Frechet distance and KID are in the judge's feature space. They are not FID and can't be set beside "
    "figures from another feature space or another number of images.",
)


@dataclass(frozen=True)
class MethodResult:
    """One method: its figures and its first images uint8 [m,H,W,3].

    `from_other_run` says where they come from if not from the run that wrote the report; it is shown.
    """

    name: str
    label: str
    evaluation: Evaluation
    grid_images: NDArray[np.uint8]
    note: str = ""
    from_other_run: str | None = None


@dataclass(frozen=True)
class CodeCard:
    """One discovered code, its size in training images, and typical ones uint8 [m,H,W,3]."""

    code: int
    top_code: int
    size: int
    exemplars: NDArray[np.uint8]


@dataclass(frozen=True)
class Report:
    """All that a report shows. `stability` is the adjusted Rand index of the top codes under each bootstrap."""

    title: str
    methods: Sequence[MethodResult]
    codes: Sequence[CodeCard] = ()
    stability: Sequence[float] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    limitations: Sequence[str] = ()  # what did not work, in the caller's words
    code_labels: int = 0  # labelled training images that defined the codes; 0: found without labels


def write(report: Report, out_dir: Path) -> Path:
    """Write index.html and report.json into `out_dir`, both or neither; returns the path of index.html.

    Raises DdmError when `out_dir` exists and is not empty, when the methods can't be compared (none, names that repeat,
    different groups, judges, targets or n per group), or when provenance is not JSON.
    """
    _check(report)
    try:
        data = json.dumps(_as_json(report), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DdmError(f"report: provenance is not JSON ({error})") from error
    return page.write(out_dir, "evaluation.html", _shown(report), "report.json", data)


def _as_json(report: Report) -> dict[str, Any]:
    """report.json: everything but the pictures."""
    return {
        "schema_version": 1,
        "title": report.title,
        "methods": [
            {name: getattr(method, name) for name in ("name", "label", "note", "from_other_run")}
            | {"evaluation": method.evaluation.model_dump(mode="json")}
            for method in report.methods
        ],
        "codes": [{"code": card.code, "top_code": card.top_code, "size": card.size} for card in report.codes],
        "stability": list(report.stability),
        "provenance": dict(report.provenance),
        "limitations": [*report.limitations, *LIMITS],
    }


def _shown(report: Report) -> dict[str, object]:
    """What templates/evaluation.html shows."""
    rows = [(m.label + (" †" if m.from_other_run else ""), m.evaluation) for m in report.methods]
    alt = "; ".join(
        f"{label}: " + ", ".join(f"{g} {s:.3f}" for g, s in zip(e.groups, e.raw.shares, strict=True))
        for label, e in rows
    )
    return {
        "title": report.title,
        "methods": report.methods,
        "share_heads": [f"share of {group}" for group in rows[0][1].groups],
        "chart": share_chart(rows, f"Group shares. {alt}"),
        "cards": report.codes,
        "code_labels": report.code_labels,
        "stability": np.array(report.stability),
        "limitations": (*report.limitations, *LIMITS),
        "made_by": [(k, v if isinstance(v, str) else json.dumps(v)) for k, v in report.provenance.items()],
        "grid_images": GRID_IMAGES,
        "grid_columns": GRID_COLUMNS,
        "exemplars": EXEMPLARS,
    }


def _check(report: Report) -> None:
    names = [method.name for method in report.methods]
    if not names or len(set(names)) != len(names):
        raise DdmError(f"report: methods are {names}; expected one or more with different names")
    first = report.methods[0]
    for method in report.methods:
        for what in ("groups", "target", "min_per_group", "judge"):
            if getattr(method.evaluation, what) != getattr(first.evaluation, what):
                raise DdmError(
                    f"report: {method.name} and {first.name} differ in {what}; their figures can't be compared"
                )
        if len(method.grid_images) == 0:
            raise DdmError(f"report: {method.name} has no grid_images; expected its first images")


def terminal_table(methods: Sequence[MethodResult]) -> Columns:
    """Shares, FD with its 95 % interval and noise floor, neither, and Frechet distances; one column per method."""
    first = methods[0].evaluation
    groups, pair = first.groups, len(first.groups) == 2
    names = ("images", *(f"share of {group}" for group in groups), "FD_ddm" if pair else "FD_L2", "95 % interval")
    names += ("noise floor", "neither", "Frechet, all", *(f"Frechet, {group}" for group in groups))
    notes = (
        "FD: distance of the judged shares from the target. Noise floor: 95th percentile of the FD of an independent "
        "sampler on target. Neither: images that the judge puts into none of the groups. Frechet: distance in the "
        f"judge's features, for a group over its first {first.min_per_group} images."
    )
    columns = []
    for method in methods:
        evaluation, raw = method.evaluation, method.evaluation.raw
        fd, interval = (raw.scores.fd_ddm, raw.fd_ddm_interval) if pair else (raw.scores.fd_l2, raw.fd_l2_interval)
        floor = evaluation.noise_floor.share_p95[0] if pair else evaluation.noise_floor.fd_l2_p95
        cells = [
            *(str(evaluation.n), *(f"{share:.3f}" for share in raw.shares), f"{fd:.3f}"),
            "–" if interval is None else f"[{interval[0]:.3f}, {interval[1]:.3f}]",
            *(f"{floor:.3f}", f"{evaluation.neither.share:.1%}", f"{evaluation.quality.frechet:.1f}"),
            *(f"{g.quality.frechet:.1f}" if g.quality else f"– ({g.missing} missing)" for g in evaluation.per_group),
        ]
        columns.append((method.label + ("†" if method.from_other_run else ""), cells))
        if method.from_other_run:
            notes += f"\n† {method.label} is from another run: {method.from_other_run}"
    return Columns({"figure": names}, columns, notes)
