"""Drawings of how ddm_rt is built, as SVG: boxes and arrows on the card of the charts."""

from collections.abc import Sequence
from itertools import pairwise

from picture_charts import BAND, BLUE, EDGE, GREEN, INK, ORANGE, QUIET, Card

_PALE = {BLUE: "#e3f0f8", ORANGE: "#fbeadf", GREEN: "#e0f3ec", QUIET: "#f6f8fa"}
_ONCE, _EACH, _OUT, _OUTSIDE = ORANGE, BLUE, GREEN, QUIET


def architecture() -> str:
    """From training images to a bundle, and from a bundle to images, with the rooms of the house by their names."""
    card = Card(
        510,
        "From images to a bundle, and from a bundle to balanced images",
        "Train and export make a bundle of ONNX graphs, once and with torch. For each request an engine computes the "
        "graphs, the loop steps a batch of images, and the quota and its ledger give the codes. The images go to PNG "
        "files, to the HTTP server or to an evaluation. A C library does the same from the same bundle.",
    )
    card.heading("From images to a bundle, and from a bundle to balanced images")
    column, width = (24, 196, 368, 540), 156
    card.text(24, 70, "once, with torch", 13, QUIET)
    made = (("your images", "a folder", _OUTSIDE), ("train", "finds codes, trains", _ONCE))
    made += (("run", "weights, codes", _OUTSIDE), ("export", "traces the graphs", _ONCE))
    for x, (name, words, colour) in zip(column, made, strict=True):
        _box(card, x, 80, width, 58, name, [words], colour)
    for x in column[:3]:
        _arrow(card, (x + width, 109), (x + width + 16, 109))
    _arrow(card, (618, 138), (618, 164))
    card.add("rect", x=24, y=166, width=672, height=50, rx=6, fill=BLUE)
    card.text(40, 197, "bundle", 17, "#ffffff", font_weight="bold")
    card.text(122, 196, "ONNX graphs, runtime.json with codes and steps, tokenizers", 14, "#ffffff")
    _arrow(card, (102, 216), (102, 266))
    _arrow(card, (618, 216), (618, 266))
    card.text(122, 248, "for each request; torch is not needed", 13, QUIET)
    rooms = (
        ("engine", ["onnxruntime,", "openvino, tensorrt", "or torch"]),
        ("sample/loop", ["one batch; images", "join and leave", "between steps"]),
        ("sample/balance", ["the quota gives", "codes; the ledger", "keeps the counts"]),
        ("csrc", ["all of this in C++,", "behind one", "C header"]),
    )
    for x, (name, lines) in zip(column, rooms, strict=True):
        _box(card, x, 268, width, 94, name, lines, _EACH)
    _arrow(card, (180, 315), (195, 315))
    _arrow(card, (368, 315), (353, 315))
    _path(card, [(274, 362), (274, 390)])
    _path(card, [(102, 390), (446, 390)])
    for x in (102, 274, 446):
        _arrow(card, (x, 390), (x, 414))
    _arrow(card, (618, 362), (618, 414))
    ends = (("ddm-rt sample", ["PNGs, a manifest"]), ("serve/http", ["OpenAI's image", "API, and a page"]))
    ends += (("evaluate", ["a judge's shares,", "a report"]), ("your C program", ["images in memory"]))
    for x, (name, lines) in zip(column, ends, strict=True):
        _box(card, x, 416, width, 72, name, lines, _OUT)
    return card.svg()


def attention() -> str:
    """The layer that obeys codes: attention over the text, and attention over the code's tokens, added."""
    card = Card(
        446,
        "Indicator-conditioned attention: two branches that add",
        "Queries of the image attend to the text tokens in one softmax and to the four code tokens in another. The "
        "second result is multiplied by s and added to the first. With the null code s is 0.",
    )
    card.heading(
        "Indicator-conditioned attention: two branches that add",
        "Every cross-attention layer of the UNet, out = softmax(q kᵀ/√D) v + s · softmax(q k_indᵀ/√D) v_ind",
    )
    _box(card, 24, 82, 158, 66, "text tokens", ["of the prompt"], QUIET)
    _box(card, 24, 178, 158, 66, "image features", ["of this layer"], QUIET)
    _box(card, 24, 274, 158, 66, "code tokens", ["4, made of the code"], BLUE)
    _box(card, 284, 82, 246, 66, "softmax(q kᵀ/√D) v", ["the layer's own attention"], QUIET)
    _box(card, 284, 274, 246, 66, "softmax(q k_indᵀ/√D) v_ind", ["attention to the code"], BLUE)
    for y, label in ((115, "k, v"), (211, "q"), (307, "k_ind, v_ind")):
        card.text(232, y - 9, label, 13, QUIET, text_anchor="middle")
    _arrow(card, (182, 115), (282, 115))
    _arrow(card, (182, 307), (282, 307))
    _path(card, [(182, 211), (407, 211)])
    _arrow(card, (407, 211), (407, 150))
    _arrow(card, (407, 211), (407, 272))
    _path(card, [(530, 115), (604, 115)])
    _arrow(card, (604, 115), (604, 194))
    _path(card, [(530, 307), (604, 307)])
    _arrow(card, (604, 308), (604, 228))
    _circle(card, 566, 307, "×s", BLUE)
    _circle(card, 604, 211, "+", INK)
    _arrow(card, (620, 211), (642, 211))
    _box(card, 644, 178, 52, 66, "out", [], QUIET)
    card.add("rect", x=24, y=364, width=672, height=58, rx=6, fill=BAND)
    card.text(40, 388, "Null code (−1): s is 0.", 14, font_weight="bold")
    card.text(40, 409, "The lower branch adds nothing, and the layer is plain attention, bit for bit.")
    return card.svg()


Point = tuple[float, float]


def _box(
    card: Card, x: float, y: float, width: float, height: float, name: str, lines: Sequence[str], colour: str
) -> None:
    """A box with its name in bold and lines below it, centred."""
    edge = EDGE if colour == QUIET else colour
    card.add("rect", x=x, y=y, width=width, height=height, rx=6, fill=_PALE[colour], stroke=edge, stroke_width=1.5)
    first = y + height / 2 - 9 * len(lines) + 5
    card.text(x + width / 2, first, name, 15, text_anchor="middle", font_weight="bold")
    for i, line in enumerate(lines):
        card.text(x + width / 2, first + 19 + 17 * i, line, 13, QUIET, text_anchor="middle")


def _path(card: Card, points: Sequence[Point]) -> None:
    for (x1, y1), (x2, y2) in pairwise(points):
        card.line(x1, y1, x2, y2, QUIET, 2)


def _arrow(card: Card, start: Point, end: Point) -> None:
    """A straight line, across or down, with a head at its end."""
    (x1, y1), (x2, y2) = start, end
    dx, dy = (x2 > x1) - (x2 < x1), (y2 > y1) - (y2 < y1)
    _path(card, [start, (x2 - 6 * dx, y2 - 6 * dy)])
    wings = [(x2 - 8 * dx + side * dy, y2 - 8 * dy + side * dx) for side in (-5, 5)]
    card.add("polygon", points=" ".join(f"{x:g},{y:g}" for x, y in [end, *wings]), fill=QUIET)


def _circle(card: Card, x: float, y: float, words: str, colour: str) -> None:
    card.add("circle", cx=x, cy=y, r=16, fill="#ffffff", stroke=colour, stroke_width=1.5)
    card.text(x, y + 5, words, 16, colour, text_anchor="middle", font_weight="bold")
