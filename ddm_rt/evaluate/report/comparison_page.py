"""A comparison for people: a table in the terminal, and one self-contained page with the same figures as JSON."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from rich.text import Text

from ddm_rt.evaluate.comparison.compare import Comparison
from ddm_rt.evaluate.comparison.paired import Decision
from ddm_rt.evaluate.report import html
from ddm_rt.evaluate.report.html import Html, element, join, section, table
from ddm_rt.evaluate.report.plots import difference_chart
from ddm_rt.files import atomic_directory

_PAIRS = 24  # shown of each side
_COLUMNS = 8

Pictures = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # A and B, each [N,H,W,3]

LIMITS = (
    "Shares are a judge's verdicts. Its errors hide a part of a difference: a judge that is right 97 % of the time for "
    "either group shows 94 % of it.",
    "The decision is about differences between A and B. What A's own shares are worth, `ddm-rt evaluate` says.",
    "An interval covers the drawing of seeds. It says nothing of another training, other settings or another machine.",
    "A run that is undecided should be followed by one run with as many images as said and another seed; looking again "
    "and again at a growing number raises the rate of false alarms.",
    "Frechet distance and KID are in the judge's feature space. They are not FID.",
)


def sentence(comparison: Comparison) -> str:
    """The decision in words, with its reason."""
    labels = comparison.labels
    a, b, margin = comparison.a.label, comparison.b.label, f"{labels.margin:g}"
    widest = max(labels.changes, key=lambda change: max(map(abs, change.interval)))
    interval = f"{widest.group} {widest.difference:+.3f} [{widest.interval[0]:+.3f}, {widest.interval[1]:+.3f}]"
    p = f"{labels.test.name} p = {labels.test.p:.2g}"
    if labels.decision is Decision.EQUIVALENT:
        return f"{b} keeps the shares of {a}: every difference lies within ±{margin} (widest: {interval})."
    if labels.decision is Decision.DRIFT:
        return f"{b} has drifted from {a}: {p}, and not every difference lies within ±{margin} (widest: {interval})."
    more = (
        ""
        if labels.n_needed is None
        else (
            f" About {labels.n_needed - labels.n} more images would decide: -n {labels.n_needed}, with another --seed."
        )
    )
    return f"Undecided between {a} and {b}: {p}, and {interval} is not within ±{margin}.{more}"


def terminal_tables(comparison: Comparison) -> list[Table]:
    """Shares with their differences; then, where there is a reference, quality."""
    labels, speed, images = comparison.labels, comparison.speed, comparison.images
    timing = ""
    if speed is not None:
        first, second = (1000 * seconds for seconds in speed.seconds_per_image)
        timing = f" A {first:.1f} ms, B {second:.1f} ms per image: B is {speed.ratio:.2f} times as fast."
    shares = Table(
        caption=f"Shares of all {labels.n} images; differences B - A with 90 % intervals. {_changed(comparison)} "
        f"{labels.test.name}: p = {labels.test.p:.2g}. Images differ by {images.mean:.2f} grey levels on average "
        f"(at most {images.largest}); {images.unchanged} are the same.{timing}"
    )
    for name in ("group", "A", "B", "lost", "gained", "difference [90 %]"):
        shares.add_column(Text(name), justify="left" if name == "group" else "right", no_wrap=name != "group")
    for change in labels.changes:
        cells = (f"{change.share_a:.3f}", f"{change.share_b:.3f}", str(change.lost), str(change.gained))
        low, high = change.interval
        shares.add_row(Text(change.group), *cells, Text(f"{change.difference:+.3f} [{low:+.3f}, {high:+.3f}]"))
    if not comparison.quality:
        return [shares]
    quality = Table(caption="Frechet distance in the judge's features, equally many images of both; change B - A.")
    for name in ("images", "n", "Frechet A", "Frechet B", "change [95 %]"):
        quality.add_column(Text(name), justify="left" if name == "images" else "right", no_wrap=name != "images")
    for row in comparison.quality:
        if row.frechet is None or row.frechet_change is None:
            quality.add_row(Text(row.group), str(row.n), "–", "–", Text(row.reason or ""))
            continue
        (a, b), (low, high) = row.frechet, row.frechet_change
        change_text = Text(f"{b - a:+.2f} [{low:+.2f}, {high:+.2f}]")
        quality.add_row(Text(row.group), str(row.n), f"{a:.2f}", f"{b:.2f}", change_text)
    return [shares, quality]


def write(comparison: Comparison, pictures: Pictures, out_dir: Path) -> Path:
    """index.html and compare.json into `out_dir`, both or neither; returns the path of index.html.

    Raises DdmError when `out_dir` exists and is not empty.
    """
    html = render(comparison, pictures)
    with atomic_directory(out_dir) as temporary:
        (temporary / "index.html").write_text(html, encoding="utf-8")
        (temporary / "compare.json").write_text(comparison.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return out_dir / "index.html"


def render(comparison: Comparison, pictures: Pictures) -> str:
    """The page. All text is escaped; pictures and the chart are inside it."""
    sections = {
        ("decision", "Decision"): _decision(comparison),
        ("pairs", "Pairs"): _pairs(comparison, pictures),
        ("quality", "Quality"): _quality(comparison),
        ("speed", "Speed"): _speed(comparison),
        ("limits", "What this does not say"): [element("ul", join(element("li", item) for item in LIMITS))],
        ("provenance", "Provenance"): _provenance(comparison),
    }
    shown = {key: content for key, content in sections.items() if content}
    links = join(element("li", element("a", heading, href=f"#{anchor}")) for anchor, heading in shown)
    return html.PAGE.substitute(
        title=html.text(f"{comparison.a.label} against {comparison.b.label}"),
        summary=element("p", element("strong", sentence(comparison))),
        links=links,
        sections=join(section(anchor, heading, *content) for (anchor, heading), content in shown.items()),
    )


def _changed(comparison: Comparison) -> str:
    labels = comparison.labels
    low, high = labels.flip_interval
    return (
        f"{labels.flips} of {labels.n} labels changed ({labels.flip_rate:.1%}, 95 % interval {low:.1%} to {high:.1%})."
    )


def _decision(comparison: Comparison) -> list[Html]:
    labels = comparison.labels
    alt = "; ".join(
        f"{c.group} {c.difference:+.3f} [{c.interval[0]:+.3f}, {c.interval[1]:+.3f}]" for c in labels.changes
    )
    caption = (
        "Difference of each share, B − A, with its 90 % interval (score interval for pairs, Tango 1998). Grey: "
        f"±{labels.margin:g}. Kept: every interval lies inside it."
    )
    chart = [
        Html(difference_chart(labels.changes, labels.margin, f"Differences. {alt}")),
        element("figcaption", caption),
    ]
    rows = [
        [
            change.group,
            f"{change.share_a:.3f}",
            f"{change.share_b:.3f}",
            change.lost,
            change.gained,
            _with(f"{change.difference:+.3f}", change.interval, "+.3f"),
        ]
        for change in labels.changes
    ]
    test = labels.test
    about = (
        f"{_changed(comparison)} {test.name}: statistic {test.statistic:.3f} on {test.degrees} degrees of freedom, "
        f"p = {test.p:.2g}."
    )
    table_caption = (
        f"Shares of all {labels.n} images, as judged; lost and gained: pairs that have the group on one side alone."
    )
    crossed = [[name, *row] for name, row in zip(labels.categories, labels.table, strict=True)]
    return [
        element("figure", join(chart), class_="chart"),
        table(table_caption, ["group", "A", "B", "lost", "gained", "difference [90 %]"], rows),
        element("p", about),
        table("Pairs: judged in A (rows) and in B (columns).", ["A", *labels.categories], crossed),
    ]


def _pairs(comparison: Comparison, pictures: Pictures) -> list[Html]:
    images = comparison.images
    psnr = "" if images.psnr_db is None else f", PSNR {images.psnr_db:.1f} dB"
    about = (
        f"The same seeds and codes on both sides. Grey levels differ by {images.mean:.3f} on average (95 % of the "
        f"images by less than {images.p95:.3f}; largest {images.largest}{psnr}); {images.off_by_more_than_one:.1%} of "
        f"the values differ by more than 1; {images.unchanged} of {comparison.labels.n} images are the same. Shown are "
        f"the first {min(_PAIRS, comparison.labels.n)}; none was picked by hand."
    )
    figures = [
        html.picture(shown[:_PAIRS], _COLUMNS, f"First images of {facts.label}", element("strong", facts.label))
        for shown, facts in zip(pictures, (comparison.a, comparison.b), strict=True)
    ]
    return [element("p", about), element("div", join(figures), class_="pictures")]


def _quality(comparison: Comparison) -> list[Html]:
    if not comparison.quality:
        return []
    rows = []
    for row in comparison.quality:
        if row.frechet is None or row.kid is None:
            rows.append([join([row.group, element("small", row.reason)], ""), row.n, *["–"] * 6])
            continue
        cells: list[object] = []
        for values, interval, spec in ((row.frechet, row.frechet_change, ".2f"), (row.kid, row.kid_change, ".4g")):
            change = format(values[1] - values[0], f"+{spec[1:]}")
            cells += [format(values[0], spec), format(values[1], spec), _with(change, interval, f"+{spec[1:]}")]
        rows.append([row.group, row.n, *cells])
    caption = (
        f"Distances to real images ({comparison.reference}) in the judge's {comparison.judge.feature_space}; equally "
        "many images of both sides. Change: B − A with a 95 % interval (jackknife over 20 blocks of pairs); above 0, B "
        "is worse."
    )
    head = ["images", "n", "Frechet, A", "Frechet, B", "change", "KID, A", "KID, B", "change"]
    return [table(caption, head, rows)]


def _speed(comparison: Comparison) -> list[Html]:
    if (speed := comparison.speed) is None:
        return []
    rows = [
        [facts.label, f"{1000 * seconds:.2f}", f"{facts.backend}, {facts.threads} threads"]
        for facts, seconds in zip((comparison.a, comparison.b), speed.seconds_per_image, strict=True)
    ]
    low, high = speed.ratio_range
    caption = (
        f"Milliseconds per image, median of interleaved requests for {speed.n} images on the machine that wrote this. "
        f"B is {speed.ratio:.2f} times as fast as A ({low:.2f} to {high:.2f} over the rounds)."
    )
    return [table(caption, ["side", "ms per image", "on"], rows)]


def _provenance(comparison: Comparison) -> list[Html]:
    a, b = comparison.a, comparison.b
    names = [name for name in type(a).model_fields if name != "label"]
    rows: list[list[object]] = [
        [name.replace("_", " "), str(getattr(a, name)), str(getattr(b, name))] for name in names
    ]
    judge = f"{comparison.judge.name}, sha256 {comparison.judge.sha256}"
    rows += [
        ["judge", judge, judge],
        ["seed", *["of the images read" if comparison.seed is None else comparison.seed] * 2],
    ]
    return [table("How these figures were made.", ["what", f"A: {a.label}", f"B: {b.label}"], rows, wrap=True)]


def _with(value: str, interval: tuple[float, float] | None, spec: str) -> Html:
    spread = "" if interval is None else element("small", f"[{interval[0]:{spec}}, {interval[1]:{spec}}]")
    return join([value, spread], "")
