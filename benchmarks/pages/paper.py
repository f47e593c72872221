"""The page of the paper's tables."""

from collections.abc import Iterator
from pathlib import Path

import balance
import paper
from store import Line, read, table

from pages.digits import fd_of

HEADER = """# The paper's tables

`python benchmarks/paper.py --faces FACES.npz`, and the rows of `benchmarks/balance.py` where the cell is the same. The
models are ours: small UNets trained from nothing on CPU, DDIM 25, n = 1,000 images a cell. {there} of {all} cells are
measured. "paper" is the objective of arXiv 2503.12536 with the true label of each image; at α = 0 it is vanilla.
"codes" are ours, without labels, and "oracle" has the true labels as codes. Sets are named by their ratio: digits in
the order of the name, faces male to female. FD_ddm is |p - 1/2| with its 95 % interval; a fair sampler stays below
{floor:.3f} in 95 of 100 draws of 1,000. Frechet distances are in the judge's features and the inception score is over
the judge's classes: neither shares a scale with the paper's.

"""
_COLUMNS = ("set", "method", "share of first", "FD_ddm [95 %]", "Frechet", "IS", "neither", "seed", "steps")
_FACES = (*_COLUMNS[:-2], "paper: FD", "paper: FID", "paper: IS")
_SEEDS = ("set", "method", "FD_ddm by seed 0, 1, 2", "mean")
# A model that makes digits has few images that are neither of its pair. And most of them lie among real ones: the judge
# also takes noise for an 8. Both bounds were set after the cells and their images had been seen.
MAX_NEITHER, MIN_PRECISION = 0.1, 0.8


def page(results: Path) -> str:
    """Digits at x0, the objective's weight, faces, seeds, and noise."""
    lines = _lines(results)
    expected = set(paper.cells())
    parts = [HEADER.format(there=len(expected & set(lines)), all=len(expected), floor=_floor(lines))]
    main = [paper.Key(f"{pair} {ratio}", m, 0, paper.STEPS) for pair, ratio, m in _product(paper.MAIN)]
    parts += ["## Digits, every method\n\n", table(_COLUMNS, _rows(lines, main))]
    weighted = ("vanilla", *map(paper.paper, paper.ALPHAS))
    weights = [paper.Key(f"3v8 {ratio}", m, 0, paper.STEPS) for ratio in ("4:1", "1:4") for m in weighted]
    parts += ["\n## The objective's weight\n\n", table(_COLUMNS, _rows(lines, weights))]
    faces = [key for key in paper.cells() if key.set in paper.FACES]
    parts += ["\n## Faces\n\n", _faces_words(), table(_FACES, _face_rows(lines, faces))]
    parts += ["\n## Three training seeds\n\n", table(_SEEDS, _seed_rows(lines))]
    noise = [key for key in paper.cells() if key.method.endswith(", ε")]
    parts += [
        "\n## Predicting noise, as the paper does\n\nThe paper's models predict noise. Ours hold 16 pixels in a latent "
        "pixel, and noise is hard for them. Precision is the share of images that lie among real ones, in the judge's "
        f"features. Where it is below {MIN_PRECISION:g}, or more than {MAX_NEITHER:.0%} of the images are neither "
        "digit, the model doesn't make digits, and its balance says nothing: the judge takes such images for eights. "
        "These bounds were set after the images had been looked at.\n\n",
        table((*_COLUMNS, "precision", "makes digits"), _noise_rows(lines, noise)),
    ]
    return "".join(parts)


def _lines(results: Path) -> dict[paper.Key, Line]:
    """Of both files, by cell."""
    renamed = {"paper": paper.paper(0.05)}
    found = {
        paper.Key(line["set"], renamed.get(line["method"], line["method"]), line["seed"], paper.STEPS): line
        for line in read(results / "balance.jsonl")
        if line["set"] in balance.SETS and line["method"] in balance.METHODS
    }
    for line in read(results / "paper.jsonl"):
        found[paper.Key(*(line[name] for name in paper.Key._fields))] = line
    return found


def _product(methods: tuple[str, ...]) -> Iterator[tuple[str, str, str]]:
    yield from ((pair, ratio, method) for pair in paper.PAIRS for ratio in paper.RATIOS for method in methods)


def _floor(lines: dict[paper.Key, Line]) -> float:
    """Of FD_ddm: the 95th percentile of a fair sampler."""
    return float(next(iter(lines.values()))["evaluation"]["noise_floor"][3][0])


def _row(key: paper.Key, line: Line) -> list[str]:
    figures = line["evaluation"]
    low, high = figures["raw"]["fd_ddm_interval"]
    return [
        key.set,
        key.method,
        f"{figures['raw']['shares'][0]:.3f}",
        f"{fd_of(line):.3f} [{low:.3f}, {high:.3f}]",
        f"{figures['quality']['frechet']:.1f}",
        f"{line['inception_score']:.2f}" if "inception_score" in line else "",
        f"{figures['neither']['share']:.1%}",
    ]


def _rows(lines: dict[paper.Key, Line], keys: list[paper.Key]) -> Iterator[list[str]]:
    yield from ([*_row(key, lines[key]), str(key.seed), str(key.steps)] for key in keys if key in lines)


def _faces_words() -> str:
    return (
        "The paper's faces are photographs (CelebAMask-HQ, 128 pixels) by Stable Diffusion with LoRA. Ours are cartoon "
        "faces at 32 pixels by a UNet trained from nothing, so only the direction of an effect can be compared. The "
        "inception score is over two classes, female and male: it can't exceed 2.\n\n"
    )


def _face_rows(lines: dict[paper.Key, Line], keys: list[paper.Key]) -> Iterator[list[str]]:
    weights = dict(zip(("vanilla", *map(paper.paper, paper.ALPHAS)), range(4), strict=True))
    for key in keys:
        if key in lines:
            at = weights.get(key.method)
            theirs = ("", "", "") if at is None else (f"{value:g}" for value in paper.PAPER[key.set][at])
            yield [*_row(key, lines[key]), *theirs]


def _seed_rows(lines: dict[paper.Key, Line]) -> Iterator[list[str]]:
    for ratio in paper.RATIOS:
        for method in paper.MAIN:
            keys = [paper.Key(f"3v8 {ratio}", method, seed, paper.STEPS) for seed in paper.SEEDS]
            found = [fd_of(lines[key]) for key in keys if key in lines]
            if len(found) > 1:
                shown = ", ".join(f"{fd_of(lines[key]):.3f}" if key in lines else "missing" for key in keys)
                yield [keys[0].set, method, shown, f"{sum(found) / len(found):.3f} ({len(found)} seeds)"]


def _noise_rows(lines: dict[paper.Key, Line], keys: list[paper.Key]) -> Iterator[list[str]]:
    there = [key for key in keys if key in lines]
    for key, row in zip(there, _rows(lines, there), strict=True):
        figures = lines[key]["evaluation"]
        precision = figures["quality"]["precision"]
        digits = figures["neither"]["share"] <= MAX_NEITHER and precision >= MIN_PRECISION
        yield [*row, f"{precision:.2f}", "yes" if digits else "NO"]
