"""The page of shortcuts: for each set, what each does to speed, balance, quality and diversity."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from store import Line, read, table

from ddm_rt.evaluate.comparison.kept import gravest
from ddm_rt.evaluate.comparison.paired import Decision

HEADER = """# A verdict for every shortcut

Each row makes the images of the same seeds and codes as the teacher's whole walk in fp32, and `ddm-rt compare`'s three
verdicts are about the pairs: "equivalent", "changed" or "undecided", for each of the sampling seeds. Quality is kept
where the whole 90 % intervals of the ratios of Frechet distances, of all images and of each group, lie below 1.05.
Diversity is kept where those of precision, recall and Vendi score of each group lie above .95. The ratio that decides
has the gravest verdict of all seeds, and its interval reaches farthest to the bad side. FD_ddm and "neither" are of the
first seed. Images a second are medians [quartiles] of interleaved rounds, and the factor is to the teacher's in fp32 on
the same batch.

Intervals leave out blocks of pairs that have the same part of every code. Where a group has 5,000 images or more, its
recall is the mean over parts of 2,500.

"""
YARDSTICK = "teacher, fp32"
COLUMNS = (
    *("row", "seeds", "FD_ddm [95 %]", "neither", "balance", "quality", "ratio that decides [90 %]", "diversity"),
    *("ratio that decides [90 %]", "batch 1: images/s (times)", "batch 64: images/s (times)"),
)


def page(results: Path) -> str:
    """Sets and rows in the order of the file; in a set the yardstick first, and students last."""
    lines = read(results / "shortcuts.jsonl")
    return HEADER + "\n".join(
        _set(name, lines) for name in dict.fromkeys(line["set"] for line in lines if line["seed"] != "time")
    )


def _set(name: str, lines: Sequence[Line]) -> str:
    own = [line for line in lines if line["set"] == name]
    judged = [line for line in own if line["seed"] != "time"]
    timed = [line for line in own if line["seed"] == "time"]
    base = next((line for line in timed if line["row"] == YARDSTICK), {})
    # A factor is to the yardstick of the same run.
    speed = {line["row"]: line["images_per_s"] for line in timed if _run(line) == _run(base)}
    names = sorted(
        dict.fromkeys(line["row"] for line in judged),
        key=lambda name: (name != YARDSTICK, not name.startswith("teacher")),
    )
    first = judged[0]
    stamp, commits = first["machine"], dict.fromkeys(line["commit"] for line in judged)
    times = f"; times of {base['commit']}, {base['rounds']} rounds, {base['threads']} threads" if base else ""
    of_base = speed.get(YARDSTICK, {})
    rows = (_row([line for line in judged if line["row"] == row], speed.get(row, {}), of_base) for row in names)
    return (
        f"## {name}\n\n{table(COLUMNS, rows)}\n"
        f"n = {first['n']} images of each seed; {stamp['processor']}, {stamp['cpus']} CPUs; "
        f"commits {', '.join(commits)}{times}; "
        "`python benchmarks/shortcuts.py`\n"
    )


def _run(line: Line) -> tuple[object, ...]:
    return tuple(line.get(name) for name in ("commit", "rounds", "threads", "machine"))


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:,.0f}" if images_per_s >= 100 else f"{images_per_s:.3g}"


def _row(lines: Sequence[Line], speed: Line, base: Line) -> Iterator[str]:
    first = lines[0]
    low, high = first["balance"]["fd_ddm_interval"]
    yield first["row"]
    yield ", ".join(str(line["seed"]) for line in lines)
    yield f"{first['balance']['scores']['fd_ddm']:.3f} [{low:.3f}, {high:.3f}]"
    yield "" if first["neither"] is None else f"{first['neither']:.1%}"  # a judge may know the groups alone
    compared = [line for line in lines if "drift" in line]
    yield _counted([Decision(line["drift"]["decision"]).name.lower() for line in compared])
    for kind, largest in (("quality", True), ("diversity", False)):
        yield _counted([line[kind]["decision"] or "too few images" for line in compared])
        every = [figure for line in compared for figure in line[kind]["figures"]]
        verdict = gravest({figure[5] for figure in every})
        figures = [figure for figure in every if figure[5] == verdict]
        # The end of an interval that lies nearest to the bound, or farthest beyond it.
        worst = max(figures, key=lambda figure: figure[4] if largest else -figure[3], default=None)
        yield "" if worst is None else f"{worst[0]}, {worst[1]}: {worst[2]:.3f} [{worst[3]:.3f}, {worst[4]:.3f}]"
    for batch in ("1", "64"):
        if batch in speed:
            low, middle, high = speed[batch]
            yield f"{_rate(middle)} [{_rate(low)}, {_rate(high)}] ({middle / base[batch][1]:.2f}x)"
        else:
            yield ""


def _counted(words: Sequence[str]) -> str:
    """How often each was said: "equivalent 2, undecided 1"; a word that was always said stands alone."""
    counts = {word: words.count(word) for word in dict.fromkeys(words)}
    return words[0] if len(counts) == 1 else ", ".join(f"{word} {count}" for word, count in counts.items())
