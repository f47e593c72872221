"""Whether a table that is rendered for a narrow terminal is readable: its words are whole, its cells are short."""

import io
import re
from itertools import groupby
from typing import Any

from rich.console import Console

WIDTHS = (80, 120)
BORDERS = re.compile("[\u2500-\u257f]")


def rendered(table: Any, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


def words(lines: list[str]) -> set[str]:
    return set(BORDERS.sub(" ", "\n".join(lines)).split())


def check_words(table: Any, *, blank: bool = False) -> None:
    """No word is cut at 80 or at 120 columns, and no cell has more than four lines.

    `blank`: rows may begin with an empty cell.
    """
    wide = words(rendered(table, 1000))
    for width in WIDTHS:
        lines = rendered(table, width)
        assert max(map(len, lines)) <= width
        assert words(lines) == wide, words(lines) ^ wide
        going_on = [bool(re.match(r"[│┃] +[│┃]", line)) for line in lines]
        assert blank or all(len(list(run)) <= 3 for more, run in groupby(going_on) if more)
