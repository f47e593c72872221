"""The report: one self-contained page for people and the same figures as JSON for machines, written "
"together."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.errors import DdmError
from ddm_rt.evaluate.evaluation import Balance, Evaluation
from ddm_rt.evaluate.intervals import Interval
from ddm_rt.evaluate.quality import Quality
from ddm_rt.evaluate.report import html
from ddm_rt.evaluate.report.html import Html, element, join, section, table
from ddm_rt.evaluate.report.plots import share_chart
from ddm_rt.files import atomic_directory

GRID_IMAGES = 48
GRID_COLUMNS = 8
EXEMPLARS = 8

_QUALITY = (  # field, heading, format
    ("frechet", "Frechet distance", ".1f"),
    ("kid", "KID", ".4g"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("coverage", "coverage", ".3f"),
)

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
    """All that a report shows. `stability` is the adjusted Rand index of the top codes under each "
    "bootstrap."""

    title: str
    methods: Sequence[MethodResult]
    codes: Sequence[CodeCard] = ()
    stability: Sequence[float] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    limitations: Sequence[str] = ()  # what did not work, in the caller's words
    code_labels: int = 0  # labelled training images that defined the codes; 0: found without labels


def write(report: Report, out_dir: Path) -> Path:
    """Write index.html and report.json into `out_dir`, both or neither; returns the path of index.html.

    Raises DdmError when `out_dir` exists and is not empty, when the methods can't be compared (none, names
    that repeat, different groups, judges, targets or n per group), or when provenance is not JSON.
    """
    _check(report)
    try:
        data = json.dumps(as_json(report), indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DdmError(f"report: provenance is not JSON ({error})") from error
    html = render(report)
    with atomic_directory(out_dir) as temporary:
        (temporary / "index.html").write_text(html, encoding="utf-8")
        (temporary / "report.json").write_text(data + "\n", encoding="utf-8")
    return out_dir / "index.html"


def as_json(report: Report) -> dict[str, Any]:
    """report.json: everything but the pictures."""
    return {
        "schema_version": 1,
        "title": report.title,
        "methods": [
            {
                "name": method.name,
                "label": method.label,
                "note": method.note,
                "from_other_run": method.from_other_run,
                "evaluation": method.evaluation.model_dump(mode="json"),
            }
            for method in report.methods
        ],
        "codes": [{"code": card.code, "top_code": card.top_code, "size": card.size} for card in report.codes],
        "stability": list(report.stability),
        "provenance": dict(report.provenance),
        "limitations": [*report.limitations, *LIMITS],
    }


def render(report: Report) -> str:
    """The page. All text is escaped; pictures and charts are inside it."""
    first = report.methods[0].evaluation
    accuracy = "unknown" if first.judge.accuracy is None else f"{first.judge.accuracy:.1%} on held-out real images"
    summary = (
        f"Groups: {', '.join(first.groups)}. Measured by the judge {first.judge.name} (accuracy "
        f"{accuracy}), which took no part in training or sampling. An image that is judged as another class "
        "belongs to neither group."
    )
    sections = {
        ("pictures", "Pictures"): _pictures(report),
        ("shares", "Group shares"): _shares(report),
        ("quality", "Quality"): _quality(report),
        ("variation", "Continuous variation"): _variation(report),
        ("nearest", "Nearest training images"): _nearest(report),
        ("codes", "Discovered codes"): _codes(report),
        ("limits", "What did not work, and what this does not claim"): _limits(report),
        ("provenance", "Provenance"): _provenance(report),
    }
    shown = {key: content for key, content in sections.items() if content}
    links = (element("li", element("a", heading, href=f"#{anchor}")) for anchor, heading in shown)
    return html.PAGE.substitute(
        title=html.text(report.title),
        summary=element("p", summary),
        links=join(links, ""),
        sections=join(section(anchor, heading, *content) for (anchor, heading), content in shown.items()),
    )


def _pictures(report: Report) -> list[Html]:
    about = (
        f"The first {GRID_IMAGES} images of each method in the order in which they were sampled (fewer "
        "where there are fewer). None was picked by hand."
    )
    figures = [
        html.picture(
            method.grid_images[:GRID_IMAGES],
            GRID_COLUMNS,
            f"First {len(method.grid_images[:GRID_IMAGES])} images sampled by {method.label}",
            join([element("strong", method.label), _badge(method), method.note], " "),
        )
        for method in report.methods
    ]
    return [element("p", about), element("div", join(figures), class_="pictures")]


def _shares(report: Report) -> list[Html]:
    methods = report.methods
    rows = [(m.label + (" †" if m.from_other_run else ""), m.evaluation) for m in methods]
    alt = "; ".join(
        f"{label}: " + ", ".join(f"{g} {s:.3f}" for g, s in zip(e.groups, e.raw.shares, strict=True))
        for label, e in rows
    )
    caption = (
        "Point: measured share. Coloured line: 95 % interval (stratified by code for samplers with quotas, "
        "Wilson for the others). Dashed: target. Grey band: where 95 % of the shares fall of a sampler that "
        "draws groups independently at the target, at that n; differences within it say nothing."
    )
    others = [element("div", join(["†", _name(m)], " ")) for m in methods if m.from_other_run]
    chart = [
        Html(share_chart(rows, f"Group shares. {alt}")),
        element("figcaption", join([caption, *others], " ")),
    ]
    groups = methods[0].evaluation.groups
    pair = len(groups) == 2
    head = ["method", "n", *(f"share of {g}" for g in groups), *(["FD_ddm"] if pair else []), "FD_L2"]
    shares = [_share_row(m, m.evaluation.raw, pair) for m in methods]
    corrected = [_share_row(m, m.evaluation.corrected, pair) for m in methods if m.evaluation.corrected]
    content = [
        element("figure", join(chart), class_="chart"),
        table(
            "As judged, with 95 % intervals; shares are among the images of some group. Floor: the mean and "
            "95th percentile that an independent sampler on target scores with as many images.",
            [*head, "neither", "floor of " + ("FD_ddm" if pair else "FD_L2")],
            [
                [*row, _with(m.evaluation.neither.share, m.evaluation.neither.interval), _floor(m.evaluation)]
                for row, m in zip(shares, methods, strict=True)
            ],
        ),
    ]
    if corrected:
        content.append(table("Corrected for the judge's errors on held-out real images.", head, corrected))
    names = ("bias-P", "deviation ratio", "KL(p‖target)", "normalised entropy", "worst-group ratio")
    keys = ("bias_p", "deviation_ratio", "kl", "normalised_entropy", "worst_group_ratio")
    spd = any(m.evaluation.spd is not None for m in methods)
    scores = [
        [
            _name(m),
            *(f"{getattr(m.evaluation.raw.scores, key):.3f}" for key in keys),
            *([_with(m.evaluation.spd, m.evaluation.spd_interval)] if spd else []),
        ]
        for m in methods
    ]
    content.append(table("Further scores of the same shares, as judged.", ["method", *names, *["SPD"] * spd], scores))
    return content


def _share_row(method: MethodResult, balance: Balance, pair: bool) -> list[object]:
    scores = balance.scores
    shares = [_with(s, i) for s, i in zip(balance.shares, balance.intervals, strict=True)]
    ddm = [_with(scores.fd_ddm, balance.fd_ddm_interval)] if pair else []
    return [_name(method), method.evaluation.n, *shares, *ddm, _with(scores.fd_l2, balance.fd_l2_interval)]


def _floor(evaluation: Evaluation) -> str:
    floor = evaluation.noise_floor
    if len(evaluation.groups) == 2:
        return f"{floor.share_mean[0]:.3f} / {floor.share_p95[0]:.3f}"
    return f"{floor.fd_l2_mean:.3f} / {floor.fd_l2_p95:.3f}"


def _quality(report: Report) -> list[Html]:
    first = report.methods[0].evaluation
    rows = [_quality_row(m, "all", m.evaluation.quality) for m in report.methods]
    for k, group in enumerate(first.groups):
        for m in report.methods:
            found = m.evaluation.per_group[k]
            rows.append(_quality_row(m, f"judged {group}", found.quality, found.reason))
    caption = (
        f"Against {first.quality.n_reference} real held-out images with equally many of each group, in the "
        f"judge's {first.judge.feature_space}. Per group: the first {first.min_per_group} images of each "
        "method that were judged so, equal n for all."
    )
    return [table(caption, ["method", "images", "n", *(name for _, name, _ in _QUALITY)], rows)]


def _quality_row(method: MethodResult, which: str, found: Quality | None, reason: str | None = None) -> list[object]:
    if found is None:
        name = join([_name(method), element("small", reason)], "")
        return [name, which, *["–"] * (1 + len(_QUALITY))]
    figures = (format(getattr(found, key), spec) for key, _, spec in _QUALITY)
    return [_name(method), which, found.n, *figures]


def _variation(report: Report) -> list[Html]:
    rows = [
        [
            _name(m),
            found.attribute,
            found.n,
            *(f"{value:.3g}" for value in (found.mean, found.mean_reference, found.spread, found.spread_reference)),
            _with(found.w1, found.interval),
            f"{found.floor_mean:.3f} / {found.floor_p95:.3f}",
        ]
        for m in report.methods
        for found in m.evaluation.variation
    ]
    head = ["method", "attribute", "n", "mean", "real: mean", "spread", "real: spread", "W1", "floor"]
    caption = (
        "Wasserstein-1 distance of a continuous attribute from the balanced held-out images, with a 95 % interval that "
        "errs on the wide side. Floor: mean and 95th percentile for two such samples, both drawn from the real ones."
    )
    return [table(caption, head, rows)] if rows else []


def _nearest(report: Report) -> list[Html]:
    rows: list[list[object]] = []
    for m in report.methods:
        if (found := m.evaluation.nearest) is not None:
            distances = (found.mean, found.p05, found.held_out_mean, found.held_out_p05, found.nearer_share)
            rows.append([_name(m), found.n, *(f"{value:.3f}" for value in distances)])
    if not rows:
        return []
    head = ["method", "n", "mean", "5th percentile", "real: mean", "real: 5th percentile", "share nearer"]
    caption = (
        "Distance to the nearest training image (root mean square over pixels; black to white is 1), and "
        "the same for real held-out images. Share nearer: images nearer than the 5th percentile of the real "
        "ones, which themselves score 0.05; much more points to copying."
    )
    return [table(caption, head, rows)]


def _codes(report: Report) -> list[Html]:
    content: list[Html] = []
    if report.codes:
        how = f"defined by {report.code_labels} labelled" if report.code_labels else "found, without labels, in the"
        about = (
            f"{len(report.codes)} codes were {how} training images. Each shows its most typical "
            "training images; whether a code is meaningful is for the reader to judge."
        )
        content.append(element("p", about))
    if report.stability:
        values = np.array(report.stability)
        content.append(
            element(
                "p",
                f"Stability: adjusted Rand index of the top codes over {len(values)} bootstraps: mean "
                f"{values.mean():.2f}, lowest {values.min():.2f} (1: the same split each time; 0: chance).",
            )
        )
    for top in sorted({card.top_code for card in report.codes}):
        cards = sorted((c for c in report.codes if c.top_code == top), key=lambda card: card.code)
        figures = [
            html.picture(
                card.exemplars[:EXEMPLARS],
                EXEMPLARS,
                f"Typical training images of code {card.code}",
                join([element("strong", f"Code {card.code}"), f"{card.size} training images"], " · "),
            )
            for card in cards
        ]
        size = sum(card.size for card in cards)
        content.append(element("h3", f"Top code {top} ({size} training images)"))
        content.append(element("div", join(figures), class_="cards"))
    for method in report.methods:
        if rows := [
            [
                f"code {row.code}",
                row.n,
                *(_figure(s) for s in row.shares or [None] * len(row.counts)),
                row.neither,
            ]
            for row in method.evaluation.codes
        ]:
            head = ["code", "images", *(f"share of {g}" for g in method.evaluation.groups), "neither"]
            other = f" (from another run: {method.from_other_run})" if method.from_other_run else ""
            content.append(table(f"{method.label}{other}: what the images of each code were judged as.", head, rows))
    return content


def _limits(report: Report) -> list[Html]:
    return [element("ul", join(element("li", item) for item in (*report.limitations, *LIMITS)))]


def _provenance(report: Report) -> list[Html]:
    judge = report.methods[0].evaluation.judge
    rows = [[key, value if isinstance(value, str) else json.dumps(value)] for key, value in report.provenance.items()]
    rows.append(["judge", f"{judge.name}, sha256 {judge.sha256}"])
    rows += [[m.label, f"from another run: {m.from_other_run}"] for m in report.methods if m.from_other_run]
    return [table("How these figures were made.", ["what", "value"], rows, wrap=True)]


def _name(method: MethodResult) -> Html:
    return join([method.label, _badge(method)], " ")


def _badge(method: MethodResult) -> Html:
    if method.from_other_run is None:
        return Html("")
    return element("span", f"from another run: {method.from_other_run}", class_="other-run")


def _with(value: float | None, interval: Interval | None) -> Html:
    spread = "" if interval is None else element("small", f"[{interval[0]:.3f}, {interval[1]:.3f}]")
    return join([_figure(value), spread], "")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


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
