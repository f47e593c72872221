"""The report's main figures as a table in the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ddm_rt.evaluate.report.evaluation_page import MethodResult


def terminal_table(methods: Sequence[MethodResult]) -> Table:
    """Shares, FD with its 95 % interval and noise floor, neither, and Frechet distances; one row per "
    "method."""
    first = methods[0].evaluation
    pair = len(first.groups) == 2
    table = Table(
        caption="FD: as judged, 95 % interval. Floor: 95th percentile of an independent sampler on target. "
        f"Frechet: judge's features; per group over the first {first.min_per_group} images."
    )
    table.add_column("method", min_width=16)
    for name in (
        "n",
        *(f"share of {group}" for group in first.groups),
        "FD_ddm" if pair else "FD_L2",
        "floor",
        "neither",
        "Frechet, all",
        *(f"Frechet, {group}" for group in first.groups),
    ):
        table.add_column(Text(name), justify="right", overflow="fold")
    for method in methods:
        evaluation, raw = method.evaluation, method.evaluation.raw
        fd, interval = (raw.scores.fd_ddm, raw.fd_ddm_interval) if pair else (raw.scores.fd_l2, raw.fd_l2_interval)
        floor = evaluation.noise_floor
        spread = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval is not None else ""
        label = method.label
        if method.from_other_run is not None:
            label += f"\n(from another run: {method.from_other_run})"
        table.add_row(
            Text(label),  # Text, not markup: brackets in a label are its own
            str(evaluation.n),
            *(f"{share:.3f}" for share in raw.shares),
            Text(f"{fd:.3f}{spread}"),
            f"{floor.share_p95[0] if pair else floor.fd_l2_p95:.3f}",
            f"{evaluation.neither.share:.1%}",
            f"{evaluation.quality.frechet:.1f}",
            *(f"{g.quality.frechet:.1f}" if g.quality else f"– ({g.missing} missing)" for g in evaluation.per_group),
        )
    return table
