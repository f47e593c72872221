"""The page of codes that steer a plain model, beside codes that a model was trained with."""

from collections.abc import Iterator
from pathlib import Path

import balance
from store import Line, read, table

from pages.digits import _distances, _fd, _frechet, fd_of

TARGET = 0.10  # of FD_ddm, set beforehand

_COLUMNS = (
    *("set", "model", "method", "denoiser calls a step", "share of first digit", "FD_ddm [95 %]", "neither"),
    *("Frechet, all", "minority / majority", "recall", "step against plain"),
)
_TRAINED = {"pixels": "balance", "latents": "latent_digits"}
_CALLS = {"vanilla": "1", "codes": "2"}  # trained codes are guided


def page(results: Path) -> str:
    """For each set and model the plain one, the one that was trained with codes, and the steered ones; then the bar."""
    lines = read(results / "steering.jsonl")
    cells = dict.fromkeys((line["set"], line["model"]) for line in lines)
    rows = [row for cell in cells for row in _rows(results, cell, lines)]
    met = sum(fd_of(line) <= TARGET for line in lines)
    worst = max(line["step"]["ratio"][1] for line in lines)
    bars = (
        f"- FD_ddm at most {TARGET:.2f}: {met} of {len(lines)} steered models\n"
        f"- a step of a steered model against one of the plain model, CPU time, median of paired calls: at most "
        f"{worst:.3f}x\n"
    )
    return table(_COLUMNS, rows) + "\n" + bars


def _rows(results: Path, cell: tuple[str, str], lines: list[Line]) -> Iterator[list[str]]:
    name, model = cell
    for line in read(results / f"{_TRAINED[model]}.jsonl"):
        if line["set"] == name and line["method"] in _CALLS:
            yield [*cell, line["method"], _CALLS[line["method"]], *_figures(line), ""]
    for line in lines:
        if (line["set"], line["model"]) == cell:
            calls = "1" if line["guidance_scale"] == 1 else "2"
            low, middle, high = line["step"]["ratio"]
            cost = f"{middle:.3f}x ({low:.3f} to {high:.3f})"
            yield [*cell, f"steered: {line['site']}, strength {line['strength']:g}", calls, *_figures(line), cost]


def _figures(line: Line) -> list[str]:
    figures, minority = line["evaluation"], balance._minority(line["set"])
    return [
        f"{figures['raw']['shares'][0]:.3f}",
        _fd(figures),
        f"{figures['neither']['share']:.1%}",
        f"{figures['quality']['frechet']:.1f}",
        _distances(_frechet(line, group) for group in (minority, 1 - minority)),
        f"{figures['quality']['recall']:.3f}",
    ]
