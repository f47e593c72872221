"""The page of the rivals: one table for each set, ours beside them, then what was chosen and how each row differs."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rivals.table import RIVALS
from store import Line, read, table

CHOICE, PROBE = "digits 7v8 4:1", "EEGDM's probe"
# Our rows that stand beside a set's, by the file they are in: the set there, and methods.
OURS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "digits 3v8 4:1": ("balance", "3v8 4:1", ("vanilla", "codes", "oracle")),
    "digits 3v8 1:4": ("balance", "3v8 1:4", ("vanilla", "codes", "oracle")),
    "latent 3v8 4:1": ("latent_digits", "3v8 4:1", ("vanilla", "codes")),
    "latent 3v8 4:1, half of prompts name the digit": ("latent_digits", "3v8 4:1", ("codes",)),
    "faces gender 4:1": ("faces", "gender 4:1", ("vanilla", "16 codes", "few-label 64 #0", "oracle")),
    "faces gender 1:4": ("faces", "gender 1:4", ("vanilla", "16 codes", "few-label 64 #0", "oracle")),
}
USES = {"codes": "nothing", "16 codes": "nothing", "vanilla": "nothing", "oracle": "all labels"}
HEADER = """# Rivals

Every row of a set samples the same trained vanilla model, unless it is named after another page. n is
1,000, and judge, seeds, sampler (DDIM, 25 steps) and the groups' references are those of the set's own benchmark. One
training run for each model. Shares are as judged. Frechet distances are in the judge's features and no FID. A group's
is at equal n, and "too few" where 2,000 images don't have enough of it. "calls" are passes of one image through the
denoiser, forward + backward; "h" are gradients of a small head on its middle block. "time" is wall time an image over
plain sampling of the same model, medians of 3 interleaved rounds in one process. The machine was shared with other
work, so the ratio of CPU times stands behind it.

"""
COLUMNS = (
    *("row", "uses", "share of first group", "FD_ddm [95 %]", "FD_L2", "noise floor p95", "neither", "Frechet, all"),
    *("minority / majority", "calls", "time (CPU)"),
)


def page(results: Path) -> str:
    """Sets in the order of `OURS`; a row that isn't there is named below its table."""
    by_cell = {(line["set"], line["rival"]): line for line in read(results / "rivals.jsonl")}
    parts = [HEADER]
    for name in OURS:
        parts += _of_set(name, by_cell, results)
    parts += ["## What was chosen\n\n", _choices(by_cell), "\n## What tells the groups\n\n", _probes(by_cell)]
    parts += ["\n## Sources, and how ours differs\n\n", _sources()]
    return "".join(parts)


def _of_set(name: str, by_cell: dict[tuple[str, str], Line], results: Path) -> Iterator[str]:
    found = [by_cell[name, rival.name] for rival in RIVALS if (name, rival.name) in by_cell]
    yield f"## {name}\n\n"
    measured = [line for line in found if "refused" not in line]
    rows = [_row(line["rival"], line) for line in measured]
    yield table(COLUMNS, [*rows, *_ours(name, results)])
    for reason in dict.fromkeys(line["refused"] for line in found if "refused" in line):
        names = ", ".join(line["rival"] for line in found if line.get("refused") == reason)
        yield f"\n{names}: {reason}.\n"
    missing = [rival.name for rival in RIVALS if (name, rival.name) not in by_cell]
    yield f"\nNot run: {', '.join(missing)}.\n\n" if missing else "\n"


def _row(name: str, line: Line) -> list[str]:
    calls, time = line["calls"], line["time"]
    heads = f" + {calls['head_gradients']:.0f} h" if calls["head_gradients"] else ""
    ratio = time["wall_ms_per_image"] / time["plain_wall_ms_per_image"]
    cost = [f"{calls['forward']:.0f} + {calls['backward']:.0f}{heads}", f"{ratio:.2f}x ({time['cpu_ratio']:.2f}x)"]
    strength = "" if line["strength"] is None else f", strength {line['strength']:g}"
    return [f"{name}{strength}", line["uses"], *_figures(line["evaluation"], line["minority"]), *cost]


def _figures(figures: Line, minority: int) -> list[str]:
    raw = figures["raw"]
    low, high = raw["fd_ddm_interval"]
    quality = [figures["per_group"][group]["quality"] for group in (minority, 1 - minority)]
    return [
        f"{raw['shares'][0]:.3f}",
        f"{raw['scores']['fd_ddm']:.3f} [{low:.3f}, {high:.3f}]",
        f"{raw['scores']['fd_l2']:.3f}",
        f"{figures['noise_floor'][3][0]:.3f}" if "noise_floor" in figures else "",
        f"{figures['neither']['share']:.1%}" if "neither" in figures else "",
        f"{figures['quality']['frechet']:.1f}",
        " / ".join("too few" if one is None else f"{one['frechet']:.1f}" for one in quality),
    ]


def _ours(name: str, results: Path) -> Iterator[list[str]]:
    """Rows of other benchmarks, as they stand there."""
    file, cell, methods = OURS[name]
    lines = {line["method"]: line for line in read(results / f"{file}.jsonl") if line["set"] == cell}
    for method in methods:
        if method in lines and "evaluation" in lines[method]:
            figures = lines[method]["evaluation"]
            figures = figures["gender"] if file == "faces" else figures
            uses = USES.get(method, "64 labels")
            minority = 0 if cell.endswith("1:4") else 1
            yield [f"{file}.md: {method}", uses, *_figures(figures, minority), "", ""]


def _choices(by_cell: dict[tuple[str, str], Line]) -> str:
    rows: list[list[Any]] = []
    for rival in RIVALS:
        line = by_cell.get((CHOICE, rival.name))
        for one in line["tried"] if line else ():
            chosen = "chosen" if line and one["strength"] == line["chosen"] else ""
            figures = f"{one['fd_ddm']:.3f}", f"{one['neither']:.1%}", f"{one['frechet']:.1f}"
            rows.append([rival.name, f"{one['strength']:g}", *figures, chosen])
    text = (
        "Strengths tried on digits 7v8 at 4:1, n = 200 each; the one with the least Frechet distance is used on every "
        "set. No other setting was chosen by us.\n\n"
    )
    return text + table(("row", "strength", "FD_ddm", "neither", "Frechet, all", ""), rows)


def _probes(by_cell: dict[tuple[str, str], Line]) -> str:
    lines = [by_cell[name, PROBE] for name in OURS if (name, PROBE) in by_cell]
    if not lines:
        return "Not run.\n"
    names = list(lines[0]["accuracy"])
    rows = [[line["set"], *(f"{line['accuracy'][one]:.3f}" for one in names)] for line in lines]
    told = f"{lines[0]['source']}. {lines[0]['differs']} Read: {lines[0]['read']}.\n\n"
    return f"{PROBE}, as a row of its own. {told}{table(('set', *names), rows)}"


def _sources() -> str:
    return "".join(
        f"- **{rival.name}** ({rival.source}; read: {rival.read}). {rival.differs}\n"
        for rival in RIVALS
        if rival.source != "-"
    )
