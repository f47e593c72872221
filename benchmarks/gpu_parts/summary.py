"""Bars and the page: pure functions of the sections' records."""

import math
from typing import Any

Sections = dict[str, dict[str, Any]]

SPEEDUP = 2.0  # fused over the unfused pair
OF_COPY = 0.7  # of the bandwidth of a copy of as many bytes
MANY_ROWS = 16  # of a call: below, a launch takes as long as the work
OVER_COMPILED = 1.0  # times diffusers with torch.compile
OF_PEAK = 0.4  # of the measured one
CHECKED = ("numerics", "races", "identity", "engines")
SD15, SDXL = (1, 8, 16), (1, 4)  # batches that the bars ask for
STAMPED = ("device", "commit", "source", "versions", "dry")  # the same in every row: the page says it once
LAYERS = 16
STEPS = 2  # numbers of them, 25 and 4


def bars(sections: Sections) -> list[dict[str, Any]]:
    """Every bar with its worst figure, where that was, and `met`: None where not all of it was measured.

    A bar holds where everything that it names does.
    """
    sums = [row for row in layer_sums(_rows(sections, "attention")) if row["batch"] >= MANY_ROWS]
    return [
        _checks(sections),
        _least(f"fused at least {SPEEDUP:.0f}x the unfused pair, over the sum of 16 layers", sums, "speedup", SPEEDUP),
        _least(f"fused at {100 * OF_COPY:.0f} % of a copy, over the sum of 16 layers", sums, "of_copy", OF_COPY),
        _against_compiled(sections, "sd15", SD15),
        _peak(sections),
        _against_compiled(sections, "sdxl", SDXL),
    ]


def _checks(sections: Sections) -> dict[str, Any]:
    checks = [row for name in CHECKED for row in _rows(sections, name) if "passed" in row]
    failed = [row for row in checks if not row["passed"]]
    # A section that was stopped hasn't passed, whatever it had checked until then.
    failed += [{"op": name, "error": sections[name]["error"]} for name in CHECKED if "error" in sections.get(name, {})]
    raised = [row for name in CHECKED for row in _rows(sections, name) if "raised" in row]
    met = not (failed or raised) if checks or failed or raised else None
    if met and not all(sections.get(name, {}).get("complete", False) for name in ("numerics", "identity")):
        met = None  # nothing failed, but not everything was checked
    return _bar(
        "numerics, races, byte identity and engines: every check passes",
        "failed",
        len(failed + raised),
        met,
        failed + raised,
    )


def _least(name: str, rows: list[dict[str, Any]], key: str, limit: float) -> dict[str, Any]:
    name = f"{name}, cold and warm, {MANY_ROWS} rows and above"
    if not rows:
        return _bar(name, key, None, None, [])
    worst = min(rows, key=lambda row: float(row[key]))
    return _bar(name, key, worst[key], worst[key] >= limit, [worst])


def _against_compiled(sections: Sections, model: str, batches: tuple[int, ...]) -> dict[str, Any]:
    """At every batch and number of steps, the faster of the engine's two ways, without the indicator against diffusers
    compiled, and with it against the same UNet compiled in diffusers' loop.
    """
    name = f"{model} at least {OVER_COMPILED:.1f}x compiled diffusers at batch {', '.join(map(str, batches))}"
    found: list[dict[str, Any]] = []
    measured = set()
    for batch in batches:
        rows = _ours(sections, model, batch)
        for steps, indicator in dict.fromkeys((row["steps"], row["indicator"]) for row in rows):
            ours = [row for row in rows if (row["steps"], row["indicator"]) == (steps, indicator)]
            best = max(ours, key=lambda row: float(row["images_per_s"]))
            if best["over_like"] is not None:
                found.append(best)
                measured.add((batch, indicator, steps))
    if not found:
        return _bar(name, "over_like", None, None, [])
    worst = min(found, key=lambda row: float(row["over_like"]))
    whole = len(measured) == len(batches) * 2 * STEPS  # with and without the indicator
    met = worst["over_like"] >= OVER_COMPILED
    return _bar(name, "over_like", worst["over_like"], met if whole or not met else None, [worst])


def _peak(sections: Sections) -> dict[str, Any]:
    rows = [row for batch in SD15 for row in _ours(sections, "sd15", batch)]
    name = f"sd15 at {100 * OF_PEAK:.0f} % of the measured bf16 peak at the best"
    if not rows:
        return _bar(name, "of_peak", None, None, [])
    best = max(rows, key=lambda row: float(row["of_peak"]))
    met = best["of_peak"] >= OF_PEAK
    whole = {row["batch"] for row in rows} == set(SD15)
    return _bar(name, "of_peak", best["of_peak"], met if met or whole else None, [best])


def _ours(sections: Sections, model: str, batch: int) -> list[dict[str, Any]]:
    """The engine's images, without and with the indicator."""
    names = (f"{model}_{batch}", f"{model}_{batch}_indicator")
    return [row for name in names for row in _rows(sections, name) if row.get("who") == "engine" and "of_peak" in row]


def _bar(name: str, figure: str, value: float | None, met: bool | None, rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = ["op", "mix", "backend", "model", "dtype", "shape", "batch", "steps", "variant", "cache"]
    names += ["queries", "head_dim", "branches", "noise", "error", "raised"]
    return {
        "bar": name,
        "figure": figure,
        "worst": value,
        "met": met,
        "at": [{key: row[key] for key in names if key in row} for row in rows[:8]],
    }


def layer_sums(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per dtype, batch and cache: the 16 cross-attention layers of a step together, where all shapes were measured."""
    found = []
    for dtype, batch, cache in dict.fromkeys((row["dtype"], row["batch"], row["cache"]) for row in rows):
        layers = [row for row in rows if (row["dtype"], row["batch"], row["cache"]) == (dtype, batch, cache)]
        if sum(row["layers"] for row in layers) != LAYERS:
            continue
        total = {
            key: sum(row["layers"] * row[f"{key}_ms"] for row in layers)
            for key in ("fused", "unfused", "flash", "copy")
        }
        found.append(
            {"dtype": dtype, "batch": batch, "cache": cache}
            | {f"{key}_ms": value for key, value in total.items()}
            | {"speedup": total["unfused"] / total["fused"], "of_copy": total["copy"] / total["fused"]}
        )
    return found


def image_rows(sections: Sections) -> list[dict[str, Any]]:
    """Of the sections that make whole images. Baselines take part in two of them; the first time counts."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in (row for section in sections.values() for row in section.get("rows", []) if "over_compiled" in row):
        found.setdefault((row["model"], row["batch"], row["steps"], row["variant"]), row)
    return list(found.values())


def markdown(tree: dict[str, Any]) -> str:
    """`gpu.json` as a page: bars first, then a table per section."""
    machine, sections = tree["machine"], tree["sections"]
    words = {True: "met", False: "NOT MET", None: "not measured"}
    lines = ["# On a GPU", ""]
    lines += [f"**{name.upper()}: {text}.**\n" for name, text in tree.get("notes", {}).items()]
    if machine:
        lines += [f"{machine['gpu']} ({machine['architecture']}), {machine['host']}.", ""]
        lines += [f"Commit {machine['commit']}, source {machine['source']}.", ""]
        lines += ["Versions: " + ", ".join(f"{k} {v}" for k, v in machine["versions"].items()) + ".", ""]
        lines += [f"- missing: {line}" for line in machine["missing"]] + [""]
    lines += ["| bar | figure | |", "| --- | ---: | --- |"]
    dry = bool(tree.get("notes"))
    lines += [
        f"| {bar['bar']} | {_cell(bar['worst'])} | {'dry run' if dry else words[bar['met']]} |" for bar in tree["bars"]
    ]
    if image_rows(sections):
        lines += ["", "![images per second](gpu.svg)"]
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
    for full in rows:
        row = {name: value for name, value in full.items() if name not in STAMPED}
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
