"""A comparison for people: a table in the terminal, and one self-contained page with the same figures as JSON."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddm_rt.evaluate.comparison.compare import Comparison
from ddm_rt.evaluate.comparison.kept import Kind, Ratio, decision
from ddm_rt.evaluate.comparison.paired import Decision
from ddm_rt.evaluate.report import page
from ddm_rt.evaluate.report.columns import Columns
from ddm_rt.evaluate.report.plots import difference_chart

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
    p = f"{labels.test.name}, p = {labels.test.p:.2g}"
    if labels.decision is Decision.EQUIVALENT:
        return f"{b} keeps the shares of {a}: every difference lies within ±{margin} (widest: {interval})."
    if labels.decision is Decision.DRIFT:
        return f"{b} has drifted from {a}: {p}, and not every difference lies within ±{margin} (widest: {interval})."
    more = ""
    if labels.n_needed is not None:
        more = (
            f" About {labels.n_needed - labels.n} more images would decide: -n {labels.n_needed}, with another --seed."
        )
    return f"Undecided between {a} and {b}: {p}, and {interval} is not within ±{margin}.{more}"


def calibration_sentence(comparison: Comparison) -> str | None:
    """Whether A's calibration holds for B. None where none drew the codes."""
    found = comparison.calibrated
    if found is None:
        return None
    shares = ", ".join(
        f"{each.group} {each.b:.3f} [{each.interval[0]:.3f}, {each.interval[1]:.3f}], A {each.a:.3f}"
        for each in found.groups
    )
    verdict = {"undecided": "may or may not hold"}.get(found.verdict, found.verdict)
    return (
        f"A's calibration {found.calibration_id[:12]} {verdict} for {comparison.b.label}, within ±{found.margin:g}: "
        f"for {found.target}, B gives {shares}."
    )


def kept_sentences(kept: Sequence[Ratio], a: str = "A", b: str = "B") -> list[str]:
    """The verdicts on quality and diversity in words, with names for both sides; none without reference images."""
    kinds: tuple[Kind, ...] = ("quality", "diversity")
    found = []
    for kind in kinds:
        verdict = decision(kept, kind)
        if verdict is None:
            continue
        own = [ratio for ratio in kept if ratio.kind == kind]
        # The nearest to its bound, or beyond it.
        worst = max((r for r in own if r.decision == verdict), key=lambda r: _badness(r.ratio, r.bound))
        low, high = worst.interval
        limit = f"{'at most' if worst.bound > 1 else 'at least'} {worst.bound:g}"
        shown = f"{worst.figure} of {worst.group} {worst.ratio:.3f} [{low:.3f}, {high:.3f}] of {a}'s, {limit} is kept"
        more = (
            ""
            if worst.real is None
            else f" The score is {worst.a:.3f} for {a}, {worst.b:.3f} for {b} and {worst.real:.3f} for real images."
        )
        more += "" if worst.n_needed is None else f" About {worst.n_needed:,} images would decide this one."
        found.append(f"{kind.capitalize()}: {verdict} ({shown}).{more}")
    return found


def _badness(ratio: float, bound: float) -> float:
    return ratio / bound if bound > 1 else bound / max(ratio, 1e-9)


def terminal_tables(comparison: Comparison) -> list[Columns]:
    """Shares with their differences; then, where there is a reference, quality."""
    labels, speed, images = comparison.labels, comparison.speed, comparison.images
    notes = (
        f"Shares are of all {labels.n} images, differences are B less A with 90 % intervals. Lost, gained: images that "
        f"only A, only B has in the group. {_changed(comparison)} Test ({labels.test.name}): p = {labels.test.p:.2g}. "
        f"Images differ by {images.mean:.2f} grey levels on average (at most {images.largest}); {images.unchanged} are "
        "the same."
    )
    if speed is not None:
        first, second = (1000 * seconds for seconds in speed.seconds_per_image)
        notes += f" A {first:.1f} ms, B {second:.1f} ms per image: B is {speed.ratio:.2f} times as fast."
    changes = labels.changes
    shares = [
        ("A", [f"{change.share_a:.3f}" for change in changes]),
        ("B", [f"{change.share_b:.3f}" for change in changes]),
        ("lost", [str(change.lost) for change in changes]),
        ("gained", [str(change.gained) for change in changes]),
        ("difference [90 %]", ["{:+.3f} [{:+.3f}, {:+.3f}]".format(c.difference, *c.interval) for c in changes]),
    ]
    tables = [Columns({"group": [change.group for change in changes]}, shares, notes)]
    if comparison.quality:
        notes = "Frechet distances are in the judge's features, over n images of both. The change is B less A."
        cells = []
        for row in comparison.quality:
            if row.frechet is None or row.frechet_change is None:
                cells.append((str(row.n), "–", "–", "–"))
                notes += f"\n{row.group}: {row.reason}"
                continue
            (a, b), (low, high) = row.frechet, row.frechet_change
            cells.append((str(row.n), f"{a:.2f}", f"{b:.2f}", f"{b - a:+.2f} [{low:+.2f}, {high:+.2f}]"))
        heads = ("n", "Frechet A", "Frechet B", "change [95 %]")
        columns = list(zip(heads, zip(*cells, strict=True), strict=True))
        tables.append(Columns({"images": [row.group for row in comparison.quality]}, columns, notes))
    return tables


def write(comparison: Comparison, pictures: Pictures, out_dir: Path) -> Path:
    """index.html and compare.json into `out_dir`, both or neither; returns the path of index.html.

    Raises DdmError when `out_dir` exists and is not empty.
    """
    data = comparison.model_dump_json(indent=1)
    return page.write(out_dir, "comparison.html", _shown(comparison, pictures), "compare.json", data)


def _changed(comparison: Comparison) -> str:
    labels = comparison.labels
    low, high = labels.flip_interval
    return (
        f"{labels.flips} of {labels.n} labels changed ({labels.flip_rate:.1%}, 95 % interval {low:.1%} to {high:.1%})."
    )


def _shown(comparison: Comparison, pictures: Pictures) -> dict[str, object]:
    """What templates/comparison.html shows."""
    a, b, labels = comparison.a, comparison.b, comparison.labels
    alt = "; ".join(
        f"{c.group} {c.difference:+.3f} [{c.interval[0]:+.3f}, {c.interval[1]:+.3f}]" for c in labels.changes
    )
    return {
        "title": f"{a.label} against {b.label}",
        "sentence": sentence(comparison),
        "calibration": calibration_sentence(comparison),
        "comparison": comparison,
        "kept": kept_sentences(comparison.kept),
        "chart": difference_chart(labels.changes, labels.margin, f"Differences. {alt}"),
        "changed": _changed(comparison),
        "images": pictures,
        "pairs_shown": _PAIRS,
        "columns": _COLUMNS,
        "limitations": LIMITS,
        "facts": [
            (name.replace("_", " "), str(getattr(a, name)), str(getattr(b, name)))
            for name in type(a).model_fields
            if name != "label"
        ],
    }
