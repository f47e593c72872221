"""Charts of a report as inline SVG, in the page's own text colour and font. The only file that imports matplotlib."""

import io
import re
import textwrap
from collections.abc import Sequence
from html import escape

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddm_rt.evaluate.audit.record import Share
from ddm_rt.evaluate.comparison.paired import ShareChange
from ddm_rt.evaluate.evaluation import Evaluation
from ddm_rt.evaluate.intervals import Interval

_INK = "#010203"  # a colour that nothing else has: becomes currentColor
_COLOURS = ("#3b82c4", "#dd7733", "#2a9d6f", "#b065c9", "#b8922a", "#d05a77", "#4aa8a8", "#8a8f3c")
_MARKERS = "os^Dvp*X"
_LABEL, _ABOUT = 24, 60  # characters of a line of a row's label, and of what the chart is about
_LINE = 0.16  # inches
_STYLE = {
    "svg.fonttype": "none",  # text stays text: selectable, and read out
    "svg.hashsalt": "ddm_rt",  # the same figures give the same bytes
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def share_chart(methods: Sequence[tuple[str, Evaluation]], alt: str) -> str:
    """Group shares with intervals, the target and the noise-floor band, one row for each (label, evaluation).

    With two groups the share of the first says all; with more there is one line per group. The band is the
    range that holds 95 % of the shares of an independent sampler on target, at that row's number of images.
    """
    groups = methods[0][1].groups
    shown = groups[:1] if len(groups) == 2 else groups
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.75 + len(methods) * (0.22 + 0.2 * len(shown))), layout="constrained")
        axes = figure.add_subplot()
        for row, (_, evaluation) in enumerate(methods):
            for k in range(len(shown)):
                _draw(axes, row + (k - (len(shown) - 1) / 2) * 0.8 / len(shown), evaluation, k, len(shown))
        axes.set_xlim(-0.01, 1.01)
        about = "share among images judged as one of the groups"
        if len(shown) == 1:
            about = f"share of {groups[0]} among images judged {' or '.join(groups)}"
        else:
            key = [axes.lines[k] for k in range(len(shown))]  # one point per group comes first, row by row
            figure.legend(key, shown, loc="outside upper center", ncols=min(len(shown), 5), frameon=False)
        return _svg(figure, axes, [label for label, _ in methods], about, alt)


def difference_chart(changes: Sequence[ShareChange], margin: float, alt: str) -> str:
    """Differences of shares with their intervals, one row for each, over a band of ±`margin`."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.75 + 0.3 * len(changes)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvspan(-margin, margin, color="#888888", alpha=0.3, linewidth=0)
        axes.axvline(0, color=_INK, linewidth=1.2, linestyle=(0, (3, 2)))
        for row, change in enumerate(changes):
            colour, marker = _COLOURS[row % len(_COLOURS)], _MARKERS[row % len(_MARKERS)]
            axes.hlines(row, *change.interval, color=colour, linewidth=2)
            axes.plot([change.difference], [row], marker=marker, color=colour, markersize=6, linestyle="")
        reach = 1.1 * max(2 * margin, *(abs(bound) for change in changes for bound in change.interval))
        axes.set_xlim(-reach, reach)
        about = "difference in the share of all images, B less A"
        return _svg(figure, axes, [change.group for change in changes], about, alt)


def group_chart(shares: Sequence[Share], about: str, alt: str) -> str:
    """Shares of an attribute's groups with their intervals, targets and noise-floor bands, one row for each."""
    with rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 0.75 + 0.3 * len(shares)), layout="constrained")
        axes = figure.add_subplot()
        for row, share in enumerate(shares):
            _draw_share(axes, row, row, 0.7, share.share, share.interval, share.target, share.floor)
        axes.set_xlim(-0.01, 1.01)
        return _svg(figure, axes, [share.group for share in shares], about, alt)


def _draw(axes: Axes, y: float, evaluation: Evaluation, k: int, lines: int) -> None:
    target, floor, raw = evaluation.target[k], evaluation.noise_floor.share_p95[k], evaluation.raw
    _draw_share(axes, y, k, 0.7 / lines, raw.shares[k], raw.intervals[k], target, floor)


def _draw_share(
    axes: Axes, y: float, k: int, height: float, share: float, interval: Interval, target: float, floor: float
) -> None:
    colour, marker = _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]
    axes.barh(y, 2 * floor, height=height, left=target - floor, color="#888888", alpha=0.3, linewidth=0)
    axes.vlines(target, y - height / 2, y + height / 2, color=_INK, linewidth=1.2, linestyles=(0, (3, 2)))
    axes.hlines(y, *interval, color=colour, linewidth=2)
    axes.plot([share], [y], marker=marker, color=colour, markersize=6, linestyle="")


def _svg(figure: Figure, axes: Axes, rows: Sequence[str], about: str, alt: str) -> str:
    """The chart, its rows named and its values said to be `about` something."""
    about = textwrap.fill(about, _ABOUT)
    rows = [textwrap.fill(row, _LABEL) for row in rows]
    more = about.count("\n") + sum(max(0, row.count("\n") - 1) for row in rows)  # lines; a row has room for two
    figure.set_figheight(figure.get_figheight() + more * _LINE)
    axes.set_yticks(range(len(rows)), rows, parse_math=False)
    # Below the whole figure: beside long labels the axes may be narrower than what is said of them.
    figure.supxlabel(about, fontsize="medium", parse_math=False)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#888888", alpha=0.25, linewidth=0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]+", r"font-size: \1; font-family: inherit", svg)
    # Without its own size the picture takes the width of the page.
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[\d.]+pt"', "", head)
    return f'{head} role="img" aria-label="{escape(alt)}">{rest}'
