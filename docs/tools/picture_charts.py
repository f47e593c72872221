"""Charts of what was measured, as SVG written by hand: the same figures give the same bytes on any machine.

A picture is a white card, so that it reads the same on a light page and on a dark one. Text stays text.
"""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np

from ddm_rt.engine.gates import MAX_FD, MAX_FRECHET_RATIO
from ddm_rt.sample.balance.quota import Quota

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
WIDTH = 720
INK, QUIET, GRID, EDGE, BAND = "#1f2328", "#59636e", "#d8dee4", "#d0d7de", "#e6e9ed"
# Okabe and Ito's colours, which a colour-blind reader can tell apart; each has a shape of its own besides.
GREY, ORANGE, BLUE, GREEN = "#6e7781", "#d55e00", "#0072b2", "#009e73"

_SETS = ("3v8 4:1", "3v8 1:4", "0v1 4:1", "0v1 1:4", "7v8 4:1", "7v8 1:4")
_METHODS = {
    "vanilla": ("vanilla", GREY, "circle"),
    "paper": ("DDM as published", ORANGE, "square"),
    "codes": ("codes (ours)", BLUE, "diamond"),
    "oracle": ("true labels as codes", GREEN, "triangle"),
}
_REQUEST, _WALKS = 64, 20


class Card:
    """An SVG picture on a white card with round corners; y grows downwards, sizes are pixels at 720 wide."""

    def __init__(self, height: float, title: str, about: str) -> None:
        self.height, self.title, self.about = height, title, about
        self.parts: list[str] = []

    def add(self, tag: str, words: str | None = None, **fields: object) -> None:
        """An element; `_` in a field's name is `-` in SVG."""
        given = "".join(f' {name.replace("_", "-")}="{_plain(value)}"' for name, value in fields.items())
        self.parts.append(f"<{tag}{given}/>" if words is None else f"<{tag}{given}>{escape(words)}</{tag}>")

    def text(self, x: float, y: float, words: str, size: float = 14, fill: str = INK, **fields: object) -> None:
        self.add("text", words, x=x, y=y, font_size=size, fill=fill, **fields)

    def heading(self, words: str, *lines: str) -> None:
        self.text(24, 36, words, 18, font_weight="bold")
        for i, line in enumerate(lines):
            self.text(24, 58 + 18 * i, line, 13, QUIET)

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str, width: float = 1, **fields: object) -> None:
        self.add("line", x1=x1, y1=y1, x2=x2, y2=y2, stroke=stroke, stroke_width=width, **fields)

    def mark(self, x: float, y: float, shape: str, colour: str, *, hollow: bool = False) -> None:
        """A point of a chart, about 11 pixels wide; a hollow one is white inside."""
        look = {"fill": "#ffffff" if hollow else colour, "stroke": colour, "stroke_width": 2}
        if shape == "circle":
            self.add("circle", cx=x, cy=y, r=4.5, **look)
        else:
            corners = {
                "square": ((-4, -4), (4, -4), (4, 4), (-4, 4)),
                "diamond": ((0, -5.5), (5.5, 0), (0, 5.5), (-5.5, 0)),
                "triangle": ((0, -5), (5, 4), (-5, 4)),
            }[shape]
            points = " ".join(f"{_plain(x + dx)},{_plain(y + dy)}" for dx, dy in corners)
            self.add("polygon", points=points, stroke_linejoin="round", **look)

    def svg(self) -> str:
        size = f'viewBox="0 0 {WIDTH} {_plain(self.height)}" width="{WIDTH}" height="{_plain(self.height)}"'
        edge = f'width="{WIDTH - 1}" height="{_plain(self.height - 1)}" rx="12" fill="#ffffff" stroke="{EDGE}"'
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title about"',
            '     font-family="sans-serif">',
            f'<title id="title">{escape(self.title)}</title>',
            f'<desc id="about">{escape(self.about)}</desc>',
            f'<rect x="0.5" y="0.5" {edge}/>',
        ]
        return "\n".join([*head, *self.parts, "</svg>"]) + "\n"


def balance(results: Path = RESULTS) -> str:
    """FD_ddm over the six sets, from balance.jsonl: a point with its interval for each set and method."""
    lines = {
        (line["set"], line["method"]): line["evaluation"]
        for line in _lines(results / "balance.jsonl")
        if "evaluation" in line
    }
    chosen = {(name, method): lines[name, method] for name in _SETS for method in _METHODS}
    floor = statistics.median(evaluation["noise_floor"][3][0] for evaluation in chosen.values())
    card = Card(
        516,
        "Distance from an even split on six biased sets of digits",
        "On each set vanilla diffusion and DDM as published are .19 to .43 away from an even split. Codes are at most "
        ".04 away, as near as a model that is given the true labels.",
    )
    card.heading(
        "Distance from an even split (FD_ddm): 0 is balance",
        f"MNIST digits, {_same(e['n'] for e in chosen.values()):,} images for each point, bars: 95 % intervals, "
        "one training run each.",
    )
    left, right, top, row, reach = 120, 690, 146, 52, 0.45
    bottom = top + row * len(_SETS)

    def at(value: float) -> float:
        return left + (right - left) * value / reach

    for (label, colour, shape), x in zip(_METHODS.values(), (32, 126, 300, 434), strict=True):
        card.mark(x, 84, shape, colour)
        card.text(x + 12, 89, label, 14)
    card.add("rect", x=24, y=104, width=16, height=16, fill=BAND)
    card.text(44, 117, f"a fair coin lands here 95 times of 100 (up to {floor:.3f})")
    card.add("rect", x=left, y=top - 8, width=at(floor) - left, height=bottom - top + 8, fill=BAND)
    _ticks(card, [(at(k / 10), f"{k / 10:.1f}") for k in range(5)], top - 8, bottom)
    for i, name in enumerate(_SETS):
        y = top + row * i
        if i:
            card.line(24, y - 2, right, y - 2, GRID)
        card.text(24, y + row / 2 + 3, name, 15)
        for k, (method, (_, colour, shape)) in enumerate(_METHODS.items()):
            raw = chosen[name, method]["raw"]
            height = y + 6 + 12 * k
            low, high = raw["fd_ddm_interval"]
            card.line(at(low), height, at(high), height, colour, 2.5)
            card.mark(at(raw["scores"]["fd_ddm"]), height, shape, colour)
    card.text(
        (left + right) / 2, bottom + 40, "|share of one digit − ½|, by an independent classifier", 14, QUIET, **_MID
    )
    return card.svg()


def speed(results: Path = RESULTS) -> str:
    """The ladder of speed from fair_throughput.jsonl, with what fails a gate told in words."""
    head, *rows = _lines(results / "fair_throughput.jsonl")
    found = {row["configuration"]: row for row in rows}
    ladder = [found[name] for name in head["ladder"]]
    baseline, reference = found[head["baseline"]], found[head["reference"]]
    first, last = _rate(ladder[0])[1], _rate(ladder[-1])[1]
    card = Card(
        160 + 46 * len(ladder),
        "Images per second on two CPU cores, one idea more in each row",
        f"From {first:.1f} images per second of the authors' way to {last:,.0f} of an int8 student on OpenVINO. "
        "The authors' way and the teacher in 8 steps fail a gate.",
    )
    machine = head["machine"]
    card.heading(
        f"Images per second on {machine['cpus']} CPU cores: one idea more in each row",
        f"Each at its best batch size; medians and quartiles of {head['rounds']} rounds, {machine['processor']}; "
        "log scale.",
        f"Gates: FD_ddm at most {MAX_FD:g}; Frechet distance at most {MAX_FRECHET_RATIO:g} times that of "
        f"{head['reference']}.",
    )
    card.mark(31, 104, "circle", BLUE)
    card.text(43, 109, "passes both gates")
    card.mark(206, 104, "square", ORANGE, hollow=True)
    card.text(218, 109, "fails a gate")
    card.text(632, 109, "images/s", 14, QUIET, text_anchor="end")
    card.text(696, 109, "times", 14, QUIET, text_anchor="end")
    left, right, top, row = 308, 566, 120, 46
    bottom = top + row * len(ladder)
    low, high = math.log10(17), math.log10(3600)

    def at(value: float) -> float:
        return left + (right - left) * (math.log10(value) - low) / (high - low)

    _ticks(card, [(at(value), f"{value:,}") for value in (20, 50, 100, 200, 500, 2000)], top, bottom)
    for i, line in enumerate(ladder):
        y = top + row * i + row / 2
        card.line(24, y - row / 2, 696, y - row / 2, GRID)
        card.text(24, y - 3, line["configuration"], 15)
        card.text(24, y + 15, f"{line['what']}, {line['precision']}", 13, QUIET)
        slow, middle, fast = _rate(line)
        colour, shape = (BLUE, "circle") if line["passes"] else (ORANGE, "square")
        card.line(at(slow), y, at(fast), y, colour, 2.5)
        card.mark(at(middle), y, shape, colour, hollow=not line["passes"])
        near = (at(fast) + 12, "start") if at(middle) < (left + right) / 2 else (at(slow) - 10, "end")
        card.text(near[0], y + 5, _fails(line, reference), 13, ORANGE, text_anchor=near[1])
        card.text(632, y + 5, f"{middle:,.0f}", 15, text_anchor="end")
        card.text(696, y + 5, f"{middle / _rate(baseline)[1]:.1f}×", 15, QUIET, text_anchor="end")
    return card.svg()


def discrepancy() -> str:
    """How far the counts are from the target along one request: the product's quota, and random draws."""
    target = (0.5, 0.5)
    quota = Quota(target)
    bound = float(quota.bound)
    ours = _surplus(quota.assign(_REQUEST))
    walks = [_surplus(np.random.default_rng(seed).integers(0, 2, _REQUEST).tolist()) for seed in range(_WALKS)]
    farthest = max(abs(walk[-1]) for walk in walks)
    card = Card(
        422,
        "Images too many of one code, along a request of 64 images",
        f"By quota one code is never more than {bound:g} of an image ahead. {_WALKS} random draws drift away, one of "
        f"them by {farthest:g} images at the end.",
    )
    card.heading(
        f"One request of {_REQUEST} images, two codes, even target",
        "How many images too many (above 0) or too few (below 0) there are of the first code.",
    )
    left, right, middle, scale = 66, 690, 228, 11.2
    ways = (("by quota", BLUE, 2.5, "none"), (f"its bound: {bound:g}", INK, 1, "5 4"))
    ways += ((f"random draws: {_WALKS} requests, seeds 0 to {_WALKS - 1}", ORANGE, 1.5, "none"),)
    for (label, colour, width, dashes), x in zip(ways, (24, 150, 312), strict=True):
        card.line(x, 84, x + 28, 84, colour, width, stroke_dasharray=dashes)
        card.text(x + 36, 89, label)

    def at(n: int) -> float:
        return left + (right - left) * n / _REQUEST

    for tick in (-10, -5, 0, 5, 10):
        y = middle - scale * tick
        card.line(left, y, right, y, GRID)
        card.text(left - 10, y + 5, f"{tick:+d}".replace("-", "−") if tick else "0", 14, QUIET, text_anchor="end")
    bottom = middle + 11.5 * scale
    _ticks(card, [(at(n), str(n)) for n in range(0, _REQUEST + 1, 8)], bottom, bottom, 4)
    for walk in walks:
        card.add("polyline", points=_points(walk, at, middle, scale), fill="none", stroke=ORANGE, stroke_opacity=0.45)
    for side in (-bound, bound):
        card.line(left, middle - scale * side, right, middle - scale * side, INK, 1, stroke_dasharray="5 4")
    card.add("polyline", points=_points(ours, at, middle, scale), fill="none", stroke=BLUE, stroke_width=2.5)
    card.text((left + right) / 2, bottom + 46, "images of the request so far", 14, QUIET, **_MID)
    return card.svg()


_MID = {"text_anchor": "middle"}


def _plain(value: object) -> str:
    """A number with at most one digit behind the point."""
    return f"{round(value, 1):g}" if isinstance(value, float) else escape(str(value), {'"': "&quot;"})


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _same(values: Any) -> int:
    [value] = set(values)
    return int(value)


def _ticks(card: Card, ticks: Sequence[tuple[float, str]], top: float, bottom: float, dash: float = 0) -> None:
    """Vertical grid lines with their labels below."""
    for x, label in ticks:
        card.line(x, top, x, bottom + dash, GRID)
        card.text(x, bottom + 18 + dash, label, 14, QUIET, **_MID)


def _rate(row: dict[str, Any]) -> tuple[float, float, float]:
    """Quartiles of images per second at the batch size that suits the row best, the median between them."""
    low, middle, high = row["images_per_s"][str(row["best_batch"])]
    return low, middle, high


def _fails(row: dict[str, Any], reference: dict[str, Any]) -> str:
    """Which gates a row fails; empty where it passes."""
    ratio, found = row["frechet"] / reference["frechet"], []
    if row["fd"] > MAX_FD:
        found.append(f"FD_ddm {row['fd']:.2f}")
    if ratio > MAX_FRECHET_RATIO:
        found.append(f"Frechet {ratio:.1f}×")
    return f"fails: {', '.join(found)}" if found else ""


def _surplus(drawn: Sequence[int]) -> list[float]:
    """After 0, 1 .. n draws of two codes: how many of the first there are more than half."""
    return [sum(code == 0 for code in drawn[:n]) - n / 2 for n in range(len(drawn) + 1)]


def _points(walk: Sequence[float], at: Any, middle: float, scale: float) -> str:
    return " ".join(f"{_plain(at(n))},{_plain(middle - scale * value)}" for n, value in enumerate(walk))
