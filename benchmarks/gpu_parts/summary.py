"""Bars and the page: pure functions of the sections' records."""

import math
from typing import Any

Sections = dict[str, dict[str, Any]]

CONDITIONING_COST = 0.005  # of step time, at batch 8 and above
SPEEDUP = 2.0  # fused over the unfused pair
OF_COPY = 0.8  # of the bandwidth of a copy of as many bytes
LARGE_BATCH = 8
CHECKED = ("numerics", "races", "engines")


def bars(sections: Sections) -> list[dict[str, Any]]:
    """Every bar with its worst figure, where that was, and `met`: None where nothing was measured.

    A bar holds where every row of it does.
    """
    speed = [row for row in _rows(sections, "attention") if row["batch"] >= LARGE_BATCH]
    steps = [row for row in _rows(sections, "unet_step") if row["batch"] >= LARGE_BATCH and row["model"] == "sd15"]
    checks = [row for name in CHECKED for row in _rows(sections, name) if "passed" in row]
    failed = [row for row in checks if not row["passed"]]
    # A section that was stopped hasn't passed, whatever it had checked until then.
    failed += [{"op": name, "error": sections[name]["error"]} for name in CHECKED if "error" in sections.get(name, {})]
    return [
        _bar(
            "numerics, races and engines: every check passes",
            "failed",
            len(failed),
            not failed if checks or failed else None,
            failed,
        ),
        _worst("fused at least 2x faster than the unfused pair", steps=speed, key="speedup", limit=SPEEDUP, least=True),
        _worst("fused at 80 % of a copy's bandwidth", steps=speed, key="of_copy", limit=OF_COPY, least=True),
        _worst(
            "conditioning costs at most 0.5 % of a step", steps=steps, key="cost", limit=CONDITIONING_COST, least=False
        ),
    ]


def _worst(name: str, *, steps: list[dict[str, Any]], key: str, limit: float, least: bool) -> dict[str, Any]:
    if not steps:
        return _bar(f"{name}, batch {LARGE_BATCH} and above", key, None, None, [])
    row = (min if least else max)(steps, key=lambda r: r[key])
    met = row[key] >= limit if least else row[key] <= limit
    return _bar(f"{name}, batch {LARGE_BATCH} and above", key, row[key], met, [row])


def _bar(name: str, figure: str, value: float | None, met: bool | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("op", "backend", "model", "dtype", "shape", "batch", "queries", "head_dim", "branches", "noise", "error")
    return {
        "bar": name,
        "figure": figure,
        "worst": value,
        "met": met,
        "at": [{key: row[key] for key in names if key in row} for row in rows[:8]],
    }


def layer_sums(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per dtype and batch: the 16 cross-attention layers of a step together, where all four shapes were measured."""
    found = []
    for dtype, batch in dict.fromkeys((row["dtype"], row["batch"]) for row in rows):
        layers = [row for row in rows if (row["dtype"], row["batch"]) == (dtype, batch)]
        if sum(row["layers"] for row in layers) != 16:
            continue
        total = {
            key: sum(row["layers"] * row[f"{key}_ms"] for row in layers)
            for key in ("fused", "unfused", "flash", "copy")
        }
        found.append(
            {"dtype": dtype, "batch": batch}
            | {f"{key}_ms": value for key, value in total.items()}
            | {"speedup": total["unfused"] / total["fused"], "of_copy": total["copy"] / total["fused"]}
        )
    return found


def markdown(tree: dict[str, Any]) -> str:
    """`gpu.json` as a page: bars first, then a table per section."""
    machine, sections = tree["machine"], tree["sections"]
    words = {True: "met", False: "NOT MET", None: "not measured"}
    lines = ["# On a GPU", ""]
    if machine:
        lines += [f"{machine['gpu']} ({machine['architecture']}), {machine['host']}, commit {machine['commit']}.", ""]
        lines += ["Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".", ""]
        lines += [f"- missing: {line}" for line in machine["missing"]] + [""]
    lines += ["| bar | worst | |", "| --- | ---: | --- |"]
    lines += [f"| {bar['bar']} | {_cell(bar['worst'])} | {words[bar['met']]} |" for bar in tree["bars"]]
    if sums := layer_sums(_rows(sections, "attention")):
        lines += ["", "## The 16 cross-attention layers of a step together", "", *_table(sums)]
    for name, section in sections.items():
        lines += ["", f"## {name}", ""]
        if "error" in section:
            lines += [f"Stopped: {section['error']}", ""]
        lines += [f"{key}: {_cell(value)}  " for key, value in section.get("facts", {}).items()]
        lines += [f"left out: {what}  " for what in section.get("left_out", [])]
        lines += ["", *_table(section.get("rows", []))]
    return "\n".join(lines) + "\n"


def _rows(sections: Sections, name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = sections.get(name, {}).get("rows", [])
    return rows


def _table(rows: list[dict[str, Any]]) -> list[str]:
    """One table per kind of row: rows of a section may have different columns."""
    lines: list[str] = []
    previous: tuple[str, ...] = ()
    for row in rows:
        if tuple(row) != previous:
            previous = tuple(row)
            lines += ["", "| " + " | ".join(row) + " |", "| " + " | ".join("---" for _ in row) + " |"]
        lines.append("| " + " | ".join(_cell(value) for value in row.values()) + " |")
    return lines[1:]


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "NO", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " x ".join(map(_cell, value))
    return str(value).replace("|", "\\|").replace("\n", " ")
