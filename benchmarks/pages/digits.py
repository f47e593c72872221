"""Pages of the experiments on biased sets of digits: pixels, the latent path, and students of few steps."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import balance
import numpy as np
from store import Line, read, table

MARGIN = 0.03  # how far the latent path's FD_ddm may be from the pixel models'
MAX_FD, MAX_FD_OFF, MAX_FRECHET, MAX_SMALLEST = 0.06, 0.03, 1.15, 1.25  # of a student of four steps

_BALANCE = (
    *("set", "method", "share of first digit", "FD_ddm [95 %]", "FD_L2", "noise floor p95", "neither", "Frechet, all"),
    *("minority / majority", "RMS to nearest training image", "codes ARI"),
)
_LATENT = (
    *("set", "method", "path", "share of first digit", "FD_ddm [95 %]", "neither", "Frechet, all"),
    *("first / second digit (n = 400 each)", "RMS to nearest training image", "codes ARI"),
)
_DISTILL = ("set", "sampling", "FD_ddm [95 %]", "Frechet, all", "smallest group", "neither", "recall", "Vendi")


def balance_page(results: Path) -> str:
    """One row for each set and method, then the bars."""
    by_cell = {(line["set"], line["method"]): line for line in read(results / "balance.jsonl")}
    shown = [cell for cell in balance.cells() if cell[1] not in balance.REMEDIES]
    cells = [cell for name in (*balance.SETS, balance.STRESS) for cell in shown if cell[0] == name]
    rows = (_balance_row(by_cell[cell]) for cell in cells if cell in by_cell)
    bars = "".join(f"{line}\n" for line in _balance_bars(by_cell))
    return table(_BALANCE, rows) + "\n" + bars + _copying(by_cell)


_COPYING = (
    *("set", "method", "nearer to training images, by group [95 %]", "the same, images moved to fit [95 %]"),
    *("different nearest images (effective)", "at most vanilla's", "FD_ddm", "Frechet, all"),
)


def _copying(by_cell: dict[tuple[str, str], Line]) -> str:
    """What was tried against copies of training images, on one set, and what was chosen, on all."""
    tried = [(balance.DEVELOPMENT, name) for name in ("vanilla", "codes", "oracle", *balance.REMEDIES)]
    others = [name for name in balance.SETS if name != balance.DEVELOPMENT]
    chosen = [(name, method) for name in others for method in ("vanilla", "codes", balance.REMEDY)]
    real = [(name, balance.REAL) for name in balance.SETS]
    rows = [_copying_row(by_cell, cell) for cell in (*tried, *chosen, *real) if cell in by_cell]
    counts = {method: _at_most_vanilla(by_cell, method) for method in (balance.REMEDY, balance.REAL)}
    if not all(of for _, of in counts.values()):
        return ""
    (less, of), (real_less, real_of) = counts.values()
    fd = [fd_of(by_cell[name, balance.REMEDY]) for name in balance.SETS if (name, balance.REMEDY) in by_cell]
    return (
        f"\nAgainst copies: what was tried on {balance.DEVELOPMENT}, and what was chosen there, `{balance.REMEDY}`, on "
        f"{of // 2} of {len(balance.SETS)} sets. It copies at most as much as vanilla in {less} of {of} groups, "
        f"and its FD_ddm is at most .06 on {sum(each <= 0.06 for each in fd)} sets and {max(fd):.3f} at worst. Real "
        f"images that no generator saw do so in {real_less} of {real_of}: so much is the draw of the sets. Many images "
        "have the same nearest one, so that the intervals, which take them for independent, are too narrow.\n\n"
        + table(_COPYING, rows)
    )


def _at_most_vanilla(by_cell: dict[tuple[str, str], Line], method: str) -> tuple[int, int]:
    """Groups in which a method copies no more than vanilla, and all of its groups."""
    found = [
        one["share"] <= by_cell[name, "vanilla"]["copies"][group]["share"]
        for name in balance.SETS
        if (name, method) in by_cell
        for group, one in by_cell[name, method]["copies"].items()
    ]
    return sum(found), len(found)


def _copying_row(by_cell: dict[tuple[str, str], Line], cell: tuple[str, str]) -> list[str]:
    line, vanilla = by_cell[cell], by_cell[cell[0], "vanilla"]["copies"]

    def shares(name: str, interval: str) -> str:
        told = [
            f"{group}: {one[name]:.3f} [{one[interval][0]:.3f}, {one[interval][1]:.3f}]"
            for group, one in line["copies"].items()
            if one.get(name) is not None
        ]
        return ", ".join(told)

    less = sum(one["share"] <= vanilla[group]["share"] for group, one in line["copies"].items())
    figures = line.get("evaluation")
    return [
        *cell,
        shares("share", "interval"),
        shares("moved_share", "moved_interval"),
        " / ".join(f"{one['nearest']:.0f}" for one in line["copies"].values() if one.get("nearest")),
        f"{less} of {len(line['copies'])}",
        f"{fd_of(line):.3f}" if figures else "",
        f"{figures['quality']['frechet']:.1f}" if figures else "",
    ]


def _balance_row(line: Line) -> list[str]:
    figures = line["evaluation"]
    minority = balance._minority(line["set"])
    return [
        line["set"],
        line["method"],
        f"{figures['raw']['shares'][0]:.3f}",
        _fd(figures),
        f"{figures['raw']['scores']['fd_l2']:.3f}",
        f"{figures['noise_floor'][3][0]:.3f}",
        f"{figures['neither']['share']:.1%}",
        f"{figures['quality']['frechet']:.1f}",
        _distances(_frechet(line, group) for group in (minority, 1 - minority)),
        f"{figures['nearest']['mean']:.3f}",
        _stability(line),
    ]


def _fd(figures: Line) -> str:
    low, high = figures["raw"]["fd_ddm_interval"]
    return f"{figures['raw']['scores']['fd_ddm']:.3f} [{low:.3f}, {high:.3f}]"


def _frechet(line: Line, group: int) -> float | None:
    quality = line["evaluation"]["per_group"][group]["quality"]
    return None if quality is None else float(quality["frechet"])


def _distances(found: Iterable[float | None]) -> str:
    return " / ".join("too few" if distance is None else f"{distance:.1f}" for distance in found)


def _stability(line: Line) -> str:
    found = line.get("codes_against_labels")
    return f"{np.mean(found['stability_ari']):.3f}" if found else ""


def _balance_bars(by_cell: dict[tuple[str, str], Line]) -> list[str]:
    """The targets that were set beforehand, each with what was reached."""
    both = [name for name in balance.SETS if {(name, "codes"), (name, "vanilla")} <= set(by_cell)]
    if not both:
        return []
    pairs = [(by_cell[name, "codes"], by_cell[name, "vanilla"]) for name in both]
    fd = [tuple(fd_of(line) for line in pair) for pair in pairs]
    ours, biased = [c for c, _ in fd], [(c, v) for c, v in fd if v >= 0.1]
    frechet = [tuple(line["evaluation"]["quality"]["frechet"] for line in pair) for pair in pairs]
    minority = [tuple(_frechet(line, balance._minority(line["set"])) for line in pair) for pair in pairs]
    ratios = [c / v for c, v in minority if c is not None and v is not None]
    neither = max(c["evaluation"]["neither"]["share"] for c, _ in pairs)
    copies = [
        (f"{c['set']} {group}", *(line["copies"][group] for line in (c, v)))
        for c, v in pairs
        for group in c["copies"]
        if group in v["copies"]
    ]
    more = sum(c["interval"][0] > v["interval"][1] for _, c, v in copies)
    less = sum(c["share"] <= v["share"] for _, c, v in copies)
    return [
        f"{len(pairs)} of {len(balance.SETS)} sets measured, n = {balance.N} each. "
        "Ours (`codes`) against the targets set beforehand:",
        "",
        f"- FD_ddm at most .06 on at least five sets and at most .10 on the other: at most .06 on "
        f"{sum(value <= 0.06 for value in ours)}, largest {max(ours):.3f}",
        f"- FD_ddm at most .05 on average: {np.mean(ours):.3f}",
        f"- FD_ddm at most a quarter of vanilla's where that is at least .1: {sum(c <= v / 4 for c, v in biased)} of "
        f"{len(biased)} sets",
        f"- images of neither group at most 10 %: largest {neither:.1%}",
        f"- overall Frechet distance at most .50 of vanilla's on average: {np.mean([c / v for c, v in frechet]):.2f}",
        f"- the minority's at most .60 of vanilla's on average: {np.mean(ratios):.2f} ({len(ratios)} sets)",
        "- no group copies the training set more than with vanilla. Three-sample test, share of images nearer to "
        f"training than to as many held-out images (.5: no copying): at most vanilla's in {less} of "
        f"{len(copies)} groups, and above it with separate 95 % intervals in {more} (ours / vanilla: "
        + ", ".join(f"{name} {c['share']:.3f} / {v['share']:.3f}" for name, c, v in copies)
        + ")",
    ]


def fd_of(line: Line) -> float:
    """FD_ddm of a cell."""
    return float(line["evaluation"]["raw"]["scores"]["fd_ddm"])


def latent_page(results: Path) -> str:
    """Each row of the latent path beside the pixel models' row of `balance.py`, then the bars."""
    pixels = {(line["set"], line["method"]): line for line in read(results / "balance.jsonl")}
    # The development pair isn't in the table.
    lines = [line for line in read(results / "latent_digits.jsonl") if line["set"] in balance.SETS]
    rows, bars = [], []
    for name in dict.fromkeys(line["set"] for line in lines):
        cells = {line["method"]: line for line in lines if line["set"] == name and line["method"] != "vae"}
        for method, line in cells.items():
            if (name, method) in pixels:
                rows.append(_latent_row(name, method, "pixels", pixels[name, method]))
            rows.append(_latent_row(name, method, "VAE and prompt", line))
        if "codes" in cells and (name, "codes") in pixels:
            bars += _latent_bars(name, cells["codes"], pixels[name, "codes"])
        for vae in (line for line in lines if (line["set"], line["method"]) == (name, "vae")):
            for shown, figures in vae["evaluations"].items():
                what = f"(training images {shown}, {figures['n'] // len(figures['groups'])} each)"
                rows.append(_latent_row(name, what, "", {"evaluation": figures}))
            bars.append(f"- {name}: the VAE's error on the pair's training images is {vae['rms_error']:.3f} RMS")
    return table(_LATENT, rows) + "\n" + "".join(f"{bar}\n" for bar in bars)


def _latent_row(name: str, method: str, path: str, line: Line) -> list[str]:
    figures = line["evaluation"]
    return [
        name,
        method,
        path,
        f"{figures['raw']['shares'][0]:.3f}",
        _fd(figures),
        f"{figures['neither']['share']:.1%}",
        f"{figures['quality']['frechet']:.1f}",
        _distances(_frechet(line, group) for group in range(len(figures["per_group"]))),
        f"{figures['nearest']['mean']:.3f}" if "nearest" in figures else "",
        _stability(line),
    ]


def _latent_bars(name: str, ours: Line, pixels: Line) -> list[str]:
    met = "met" if fd_of(ours) - fd_of(pixels) <= MARGIN else "NOT met"
    share, theirs = (misplaced(line["codes_against_labels"]) for line in (ours, pixels))
    return [
        f"- {name}: FD_ddm {fd_of(ours):.3f} through VAE and prompt, {fd_of(pixels):.3f} in pixels; "
        f"at most {MARGIN:.2f} more was the target: {met}",
        f"- {name}: training images in the other digit's top code: {share:.2%}, {theirs:.2%} in pixels",
    ]


def misplaced(found: Line) -> float:
    """The share of the training images that are in a top code of which another group is the larger part."""
    shares = found["group_share_in_top"].values()
    right = [size * max(of_top) for size, of_top in zip(found["top_sizes"], zip(*shares, strict=True), strict=True)]
    return 1 - float(sum(right)) / sum(found["top_sizes"])


def distill_page(results: Path) -> str:
    """One row for each set, student and way of sampling, then the bars of the student of four steps."""
    lines = read(results / "distill.jsonl")
    rows, bars = [], []
    for name in dict.fromkeys(line["set"] for line in lines):
        found = {_label(line): _student(line) for line in lines if line["set"] == name}
        for label, f in found.items():
            fd = f"{f['fd']:.3f} [{f['low']:.3f}, {f['high']:.3f}]"
            distances = f"{f['frechet']:.1f}", f"{f['smallest']:.1f}"
            rows.append([name, label, fd, *distances, f"{f['neither']:.1%}", f"{f['recall']:.3f}", f"{f['vendi']:.2f}"])
        teacher, student = (found.get(label) for label in ("teacher, 25 steps", "student, 4 steps"))
        if teacher and student:
            bars.append(_student_bar(name, teacher, student))
    return table(_DISTILL, rows) + "\n" + "".join(f"{bar}\n" for bar in bars)


def _label(line: Line) -> str:
    earlier = " (an earlier student, distill.md)" if line["first_phase"] == "many steps" else ""
    return f"{line['sampling']}{earlier}"


def _student(line: Line) -> dict[str, Any]:
    found = line["evaluation"]
    low, high = found["raw"]["fd_ddm_interval"]
    smallest = _frechet(line, balance._minority(line["set"]))
    return {
        "fd": found["raw"]["scores"]["fd_ddm"],
        "low": low,
        "high": high,
        "frechet": found["quality"]["frechet"],
        "smallest": float("nan") if smallest is None else smallest,
        "neither": found["neither"]["share"],
        "recall": found["quality"]["recall"],
        "vendi": line["vendi"],
    }


def _student_bar(name: str, teacher: dict[str, Any], student: dict[str, Any]) -> str:
    off = student["fd"] - teacher["fd"]
    ratios = [student[key] / teacher[key] for key in ("frechet", "smallest")]
    kept = (student["fd"] <= MAX_FD, abs(off) <= MAX_FD_OFF, ratios[0] <= MAX_FRECHET, ratios[1] <= MAX_SMALLEST)
    words = ["met" if bar else "MISSED" for bar in kept]
    return (
        f"- {name}, 4 steps: FD_ddm {student['fd']:.3f} (bar .06: {words[0]}), {off:+.3f} to the teacher "
        f"(.03: {words[1]}); Frechet distance {ratios[0]:.2f}x (1.15x: {words[2]}), smallest group {ratios[1]:.2f}x "
        f"(1.25x: {words[3]})"
    )
