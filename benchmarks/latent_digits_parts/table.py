"""The results as markdown: each row of the latent path beside the pixel models' row of `balance.py`."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PIXELS = Path(__file__).parents[1] / "results" / "balance"
MARGIN = 0.03  # how far FD_ddm may be from the pixel models'

COLUMNS = (
    "set",
    "method",
    "path",
    "share of first digit",
    "FD_ddm [95 %]",
    "neither",
    "Frechet, all",
    "first / second digit (n = 400 each)",
    "RMS to nearest training image",
    "codes ARI",
)


def table(tree: dict[str, Any]) -> str:
    """Markdown from the whole results tree."""
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    for name, cells in tree["sets"].items():
        for method in (method for method in cells if method != "vae"):
            if (pixels := pixel_row(name, method)) is not None:
                lines.append(_line(_figures(name, method, "pixels", pixels)))
            lines.append(_line(_figures(name, method, "VAE and prompt", cells[method])))
        for shown, figures in cells.get("vae", {"evaluations": {}})["evaluations"].items():
            each = figures["n"] // len(figures["groups"])
            lines.append(_line(_figures(name, f"(training images {shown}, {each} each)", "", {"evaluation": figures})))
    return "\n".join([*lines, "", *_bars(tree)]) + "\n"


def pixel_row(name: str, method: str) -> dict[str, Any] | None:
    """The pixel models' cell, where balance.py ran it."""
    path = PIXELS / f"{name.replace(' ', '_').replace(':', '')}_{method}.json"
    found: dict[str, Any] | None = json.loads(path.read_bytes()) if path.is_file() else None
    return found


def fd(row: dict[str, Any]) -> float:
    return float(row["evaluation"]["raw"]["scores"]["fd_ddm"])


def misplaced(found: dict[str, Any]) -> float:
    """The share of the training images that are in a top code of which another group is the larger part."""
    shares = found["group_share_in_top"].values()
    right = [size * max(of_top) for size, of_top in zip(found["top_sizes"], zip(*shares, strict=True), strict=True)]
    return 1 - float(sum(right)) / sum(found["top_sizes"])


def _bars(tree: dict[str, Any]) -> list[str]:
    lines = []
    for name, cells in tree["sets"].items():
        pixels = pixel_row(name, "codes")
        if "codes" in cells and pixels is not None:
            ours, theirs = fd(cells["codes"]), fd(pixels)
            met = "met" if ours - theirs <= MARGIN else "NOT met"
            lines.append(
                f"- {name}: FD_ddm {ours:.3f} through VAE and prompt, {theirs:.3f} in pixels; "
                f"at most {MARGIN:.2f} more was the target: {met}"
            )
            ours, theirs = (misplaced(row["codes_against_labels"]) for row in (cells["codes"], pixels))
            lines.append(f"- {name}: training images in the other digit's top code: {ours:.2%}, {theirs:.2%} in pixels")
        if "vae" in cells:
            lines.append(
                f"- {name}: the VAE's error on the pair's training images is {cells['vae']['rms_error']:.3f} RMS"
            )
    return lines


def _figures(name: str, method: str, path: str, row: dict[str, Any]) -> list[str]:
    figures, found = row["evaluation"], row.get("codes_against_labels")
    raw, nearest = figures["raw"], figures["nearest"]
    low, high = raw["fd_ddm_interval"]
    groups = [group["quality"] for group in figures["per_group"]]
    return [
        name,
        method,
        path,
        f"{raw['shares'][0]:.3f}",
        f"{raw['scores']['fd_ddm']:.3f} [{low:.3f}, {high:.3f}]",
        f"{figures['neither']['share']:.1%}",
        f"{figures['quality']['frechet']:.1f}",
        " / ".join("too few" if quality is None else f"{quality['frechet']:.1f}" for quality in groups),
        f"{nearest['mean']:.3f}" if nearest else "",
        f"{sum(found['stability_ari']) / len(found['stability_ari']):.3f}" if found else "",
    ]


def _line(values: Iterable[str]) -> str:
    return f"| {' | '.join(values)} |"
