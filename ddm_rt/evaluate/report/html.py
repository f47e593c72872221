"""The report's page: style sheet, escaping, tables, pictures. Self-contained: it refers to no other file."""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from string import Template

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_GAP = 1  # pixels between the pictures of a sheet

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #1b1d21; --soft: #5b616b; --paper: #fff; --panel: #f4f5f7;
  --line: #d5d8de; --link: #0b5cad; --mark: #8a4b00; --mark-paper: #fff3dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ed; --soft: #a4abb6; --paper: #15171b;
  --panel: #1f2228; --line: #3a3f48; --link: #7fb8f5; --mark: #ffcf87; --mark-paper: #3a2c12; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; color: var(--ink);
  background: var(--paper); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
p, ul { max-width: 46rem; margin: .5rem 0; }
a { color: var(--link); }
:focus-visible { outline: 3px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--paper); padding: .3rem .6rem; }
nav ul { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; padding: 0; margin: .8rem 0 0; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.pictures { display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 15rem), 1fr)); gap: .9rem; }
.cards figure { background: var(--panel); border-radius: .4rem; padding: .6rem; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; image-rendering: pixelated; border-radius: .2rem; }
figcaption { margin-top: .35rem; }
figcaption strong, .cards strong { color: var(--ink); }
.chart { max-width: 44rem; margin: 1rem 0; }
.chart svg { display: block; width: 100%; height: auto; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; min-width: min(100%, 34rem);
  font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; max-width: min(46rem, calc(100vw - 2rem)); }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--line); text-align: right;
  vertical-align: top; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { font-weight: 600; white-space: normal; min-width: 9rem; }
.wrap th { min-width: 0; white-space: nowrap; }
td small, th small { display: block; color: var(--soft); font-weight: 400; }
.wrap td { white-space: normal; overflow-wrap: anywhere; text-align: left; }
.other-run { display: inline-block; color: var(--mark); background: var(--mark-paper); border-radius: .25rem;
  padding: 0 .4rem; font-size: .85em; font-weight: 600; }
th .other-run { display: block; width: fit-content; max-width: 16rem; }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --panel: #fff; --line: #bbb; --link: #000;
    --mark: #000; --mark-paper: #fff; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav, .skip { display: none; }
  .other-run { border: 1px solid #000; } .scroll { overflow: visible; } table { font-size: 8.5pt; }
  tr { break-inside: avoid; } h2, h3, caption { break-after: avoid; }
  img, .chart { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the figures</a>
<header>
<h1>$title</h1>
$summary
<nav aria-label="Sections"><ul>$links</ul></nav>
</header>
<main id="main" tabindex="-1">
$sections
</main>
</body>
</html>
""")


class Html(str):
    """Text that is markup already; every other string is escaped where it enters the page."""

    __slots__ = ()


def text(value: object) -> Html:
    """`value` as markup: escaped, unless it is `Html`."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def join(parts: Iterable[object], between: str = "\n") -> Html:
    return Html(between.join(text(part) for part in parts))


def element(tag: str, content: object, **attributes: str) -> Html:
    """<tag attribute="…">content</tag>; names in Python's spelling (`class_`, `aria_label`)."""
    written = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{written}>{text(content)}</{tag}>")


def section(anchor: str, heading: str, *content: object) -> Html:
    return element("section", join([element("h2", heading, id=anchor), *content]))


def table(caption: str, head: Sequence[object], rows: Sequence[Sequence[object]], *, wrap: bool = False) -> Html:
    """A table whose first column names its rows; scrolls sideways on its own, by keyboard too."""
    first = element("tr", join((element("th", cell, scope="col") for cell in head), ""))
    body = [
        element("tr", join([element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])], ""))
        for row in rows
    ]
    inner = join([element("caption", caption), element("thead", first), element("tbody", join(body))])
    whole = element("table", inner, class_="wrap") if wrap else element("table", inner)
    return element("div", whole, class_="scroll", role="region", tabindex="0", aria_label=caption)


def picture(images: NDArray[np.uint8], columns: int, alt: str, caption: object) -> Html:
    """A figure of images uint8 [N,H,W,3] in rows of `columns`, embedded as PNG."""
    source = png_uri(sheet(images, columns))
    image = Html(f'<img src="{source}" alt="{escape(alt)}">')
    return element("figure", join([image, element("figcaption", caption)]))


def sheet(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images [N,H,W,3] side by side in rows of `columns`, transparent elsewhere: RGBA [H', W', 4]."""
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.zeros((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + _GAP), (i % columns) * (width + _GAP)
        canvas[y : y + height, x : x + width, :3] = image
        canvas[y : y + height, x : x + width, 3] = 255
    return canvas


def png_uri(image: NDArray[np.uint8]) -> str:
    """A data: URI of one image uint8 [H,W,3] or [H,W,4]."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
