"""What the terminal shows: progress bars or lines, and the codes that were found."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ddm_rt.cli.app import console, errors, tell
from ddm_rt.config import parse_json
from ddm_rt.runtime import Codes

_EXEMPLARS = 3  # shown of each code


class Update(Protocol):
    """Any of the callbacks of `ddm_rt.progress`. A stage's name isn't shown."""

    def __call__(self, done: int, total: int, figures: dict[str, float] | str = "", /) -> None: ...


def progress(console: Console) -> Progress:
    """A context that draws bars on `console`; nothing where that is no terminal, so that logs hold messages alone."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
        console=console,
        disable=not console.is_terminal,
    )


def step_callback(bars: Progress, name: str) -> Update:
    """A progress callback that adds its bar on the first call."""
    task: TaskID | None = None

    def update(done: int, total: int, figures: dict[str, float] | str = "") -> None:
        nonlocal task
        if task is None:
            task = bars.add_task(name, total=total, figures="")
        bars.update(task, completed=done, total=total, figures=_figures(figures))

    return update


@contextmanager
def bar(name: str) -> Iterator[Update]:
    """A progress callback with a bar on stderr, for as long as the block runs."""
    with progress(errors) as bars:
        yield step_callback(bars, name)


@contextmanager
def status() -> Iterator[Callable[[str], None]]:
    """A function that shows one line of text on stderr until the next; nothing where that is no terminal."""
    if not errors.is_terminal:
        yield lambda text: None
        return
    with errors.status("") as line:
        yield lambda text: line.update(Text(text))


def log_lines(word: str) -> Update:
    """A progress callback that prints every tenth step."""

    def update(done: int, total: int, figures: dict[str, float] | str = "") -> None:
        if done % 10 == 0 or done == total:
            print(f"{word} {done} of {total} {_figures(figures)}", flush=True)

    return update


def show_codes(run: Path) -> None:
    """What discovery found: sizes, exemplars and stability, never a claim that codes are groups."""
    codes = parse_json(Codes, (run / "codes.json").read_bytes(), run / "codes.json")
    if not codes.leaves:
        return
    by_probe = codes.origin == "probe"
    title = "codes" if by_probe or codes.factors else "modes found in the data (codes are not groups)"
    table = Table("top code", "images", "code", "images", title=title)
    if codes.exemplars:
        table.add_column("typical images, by number")
    for top in range(codes.num_top_codes):
        leaves = [leaf for leaf in codes.leaves if leaf.top_code == top]
        for i, leaf in enumerate(leaves):
            head = ("", "") if i else (str(top), str(sum(leaf.size for leaf in leaves)))
            typical = " ".join(map(str, codes.exemplars[leaf.code][:_EXEMPLARS])) if codes.exemplars else ""
            table.add_row(*head, str(leaf.code), str(leaf.size), *([typical] if codes.exemplars else []))
        table.add_section()
    console.print(table)
    if codes.origin == "discovered":
        split = ", ".join(
            f"{sum(leaf.size for leaf in codes.leaves if leaf.top_code == top)}" for top in range(codes.num_top_codes)
        )
        tell(
            f"the images were split into {codes.num_top_codes} modes of {split} images, and these get equal shares. "
            "Nobody has confirmed that this is the split that you mean. `ddm-rt discover` shows other splits with "
            "their images, and lets you name and accept those to balance."
        )
    for factor in codes.factors:
        sizes = [
            sum(leaf.size for leaf, v in zip(codes.leaves, factor.value_of, strict=True) if v == value)
            for value in range(len(factor.values))
        ]
        shares = ", ".join(f"{value} ({size} images)" for value, size in zip(factor.values, sizes, strict=True))
        tell(f"{factor.name}: {shares}. Each value gets the same share.")
    if by_probe:
        tell(f"codes of a probe that was fitted on {codes.rule['labels']} labelled images: this mode used labels")
    if stability := codes.stability_ari:
        tell(
            f"stability: adjusted Rand index {sum(stability) / len(stability):.3f} on average over {len(stability)} "
            f"bootstrap samples (lowest {min(stability):.3f}; 1 is the same split again)"
        )


def _figures(figures: dict[str, float] | str) -> str:
    return "" if isinstance(figures, str) else " ".join(f"{key} {value:.4f}" for key, value in figures.items())
