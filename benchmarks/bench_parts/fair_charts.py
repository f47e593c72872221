"""Two charts of `fair_throughput.py`: every configuration, and the ladder with one bar for each idea."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from bench_parts.fair_table import Tree, best

_PASSES, _FAILS = "#2a6f97", "#c9c9c9"


def throughput(tree: Tree, out: Path) -> None:
    """Images per second of all rows, those that fail a gate in grey."""
    _bars(tree, tree["order"], out, "images/s at its best batch size; grey: fails a gate")


def ladder(tree: Tree, out: Path) -> None:
    """Images per second, each bar with the idea that it adds."""
    _bars(tree, [name for name in tree["ladder"] if name in tree["speeds"]], out, "images/s, one idea more in each bar")


def _bars(tree: Tree, names: Sequence[str], out: Path, title: str) -> None:
    rates = [best(tree, name) for name in names]
    baseline = best(tree, tree["baseline"])
    figure, axes = plt.subplots(figsize=(9, 0.36 * len(names) + 1.2), layout="constrained")
    colours = [_PASSES if tree["passes"][name] else _FAILS for name in names]
    bars: Any = axes.barh(list(names), rates, color=colours)
    labels = [f"{rate:.3g} ({rate / baseline:.1f}x)" for rate in rates]
    axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10, loc="left")
    axes.margins(x=0.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    with plt.rc_context({"svg.hashsalt": "ddm_rt"}):  # the same file for the same figures
        figure.savefig(out, metadata={"Date": None})
    plt.close(figure)
