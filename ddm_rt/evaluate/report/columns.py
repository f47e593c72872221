"""A table for a terminal of any width: columns that don't fit beside each other stand in tables of their own."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Columns:
    """Cells by the heads of their columns; none is broken over lines. `names`, of the rows, begin each of the tables.
    `notes` stand below.
    """

    names: Mapping[str, Sequence[str]]
    figures: Sequence[tuple[str, Sequence[str]]]
    notes: str = ""
    title: str | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        tables: tuple[Table, ...] = ()
        for count in range(len(self.figures), 0, -1):
            parts = [self.figures[i : i + count] for i in range(0, len(self.figures), count)]
            spare, tables = zip(*(self._table(part, options.max_width) for part in parts), strict=True)
            if min(spare) >= 0:
                break
        yield from tables
        if self.notes:
            yield Text(self.notes)

    def _table(self, figures: Sequence[tuple[str, Sequence[str]]], width: int) -> tuple[int, Table]:
        """How much narrower it could be than `width`, and a table that gives this to long heads."""
        columns = (*self.names.items(), *figures)
        needed = [max(map(cell_len, [*head.split(), *cells])) for head, cells in columns]
        spare = width - 1 - sum(3 + each for each in needed)
        table = Table(title=None if self.title is None else Text(self.title))
        for (head, _), least in zip(columns, needed, strict=True):
            table.add_column(
                Text(head),
                justify="left" if head in self.names else "right",
                width=max(least, min(cell_len(head), least + max(0, spare) // len(columns))),
            )
        for row in zip(*(cells for _, cells in columns), strict=True):
            table.add_row(*map(Text, row))
        return spare, table
