"""Bar charts in SVG, written by hand: a bare machine has no matplotlib, and the same figures give the same bytes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_STRONG, _PALE = "#2a6f97", "#b8b8b8"
_BAR, _GAP, _LABELS, _WIDTH, _VALUES = 16, 6, 330, 420, 200


class Bar(NamedTuple):
    """One bar: its text stands behind it, and its colour is strong or pale."""

    label: str
    value: float
    text: str
    strong: bool


def svg(groups: Mapping[str, Sequence[Bar]], title: str, note: str) -> str:
    """A chart with a heading for each group, unless it is empty; each group has a scale of its own."""
    shapes: list[str] = []
    y = 46
    for heading, bars in groups.items():
        if heading:
            shapes.append(_text(10, y + 12, heading, bold=True))
            y += _BAR + _GAP
        top = max(bar.value for bar in bars)
        for bar in bars:
            width = _WIDTH * bar.value / top
            colour = _STRONG if bar.strong else _PALE
            shapes.append(_text(_LABELS - 8, y + 12, bar.label, anchor="end"))
            shapes.append(f'<rect x="{_LABELS}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>')
            shapes.append(_text(_LABELS + width + 6, y + 12, bar.text))
            y += _BAR + _GAP
        y += 2 * _GAP
    size = f'width="{_LABELS + _WIDTH + _VALUES}" height="{y + 10}"'
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12" role="img">',
        f"<title>{escape(title)}: {escape(note)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        _text(10, 20, title, bold=True),
        _text(10, 36, note),
    ]
    return "\n".join([*head, *shapes, "</svg>"]) + "\n"


def _text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}"{weight}>{escape(words)}</text>'
