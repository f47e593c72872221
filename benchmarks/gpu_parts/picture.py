"""Images per second of every variant as a bar chart in SVG, written by hand: a bare machine has no matplotlib."""

from typing import Any
from xml.sax.saxutils import escape

_OURS, _THEIRS = "#2a6f97", "#b8b8b8"
_BAR, _GAP, _LABELS, _WIDTH, _VALUES = 16, 6, 330, 420, 170


def svg(rows: list[dict[str, Any]], title: str) -> str:
    """One group of bars for each model, batch and number of steps; each group has a scale of its own."""
    shapes: list[str] = []
    y = 46
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["batch"], row["steps"]), []).append(row)
    for (model, batch, steps), group in groups.items():
        shapes.append(_text(10, y + 12, f"{model}, batch {batch}, {steps} steps", bold=True))
        y += _BAR + _GAP
        top = max(row["images_per_s"] for row in group)
        for row in sorted(group, key=lambda each: float(each["images_per_s"])):
            width = _WIDTH * row["images_per_s"] / top
            colour = _OURS if row["who"] == "engine" else _THEIRS
            shapes.append(_text(_LABELS - 8, y + 12, row["variant"], anchor="end"))
            shapes.append(f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            ratio = f" ({row['over_compiled']:.2f}x)" if row.get("over_compiled") is not None else ""
            shapes.append(_text(_LABELS + width + 6, y + 12, f"{row['images_per_s']:.3g}{ratio}"))
            y += _BAR + _GAP
        y += 2 * _GAP
    size = f'width="{_LABELS + _WIDTH + _VALUES}" height="{y + 10}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        _text(10, 20, title, bold=True),
        _text(10, 36, "images/s; in brackets: times diffusers compiled without indicator. Blue: ours."),
    ]
    return "\n".join([*head, *shapes, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
