"""Images per second of every variant as a bar chart in SVG."""

from typing import Any

from bench_parts import bars
from bench_parts.bars import Bar


def svg(rows: list[dict[str, Any]], title: str) -> str:
    """One group of bars for each model, batch and number of steps."""
    groups: dict[str, list[Bar]] = {}
    for row in sorted(rows, key=lambda each: float(each["images_per_s"])):
        ratio = f" ({row['over_compiled']:.2f}x)" if row.get("over_compiled") is not None else ""
        bar = Bar(row["variant"], row["images_per_s"], f"{row['images_per_s']:.3g}{ratio}", row["who"] == "engine")
        groups.setdefault(f"{row['model']}, batch {row['batch']}, {row['steps']} steps", []).append(bar)
    order = dict.fromkeys(f"{row['model']}, batch {row['batch']}, {row['steps']} steps" for row in rows)
    note = "images/s; in brackets: times diffusers compiled without indicator. Blue: ours."
    return bars.svg({name: groups[name] for name in order}, title, note)
