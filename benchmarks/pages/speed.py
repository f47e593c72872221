"""Pages of weight and speed: footprint, embedding, hoisting, images per second, whole models; and of serving."""

import json
from pathlib import Path
from typing import Any

from measured_steps import bar_lines
from store import Line, load, table

FOOTPRINT = {  # figure -> in words, and at most
    "import_s": ("`import ddm_rt`, s", 0.15),
    "serving_mb": ("`pip install 'ddm-rt[serve]'` without torch, MB", 350.0),
    "first_image_s": ("process start to the first image of the shipped bundle, s", 2.0),
}
LEDGER = 5000  # draws per second without fsync, at least
_LOAD = "Load average is the machine's before and after the step: above 0 before it, others shared the cores."


def speed_page(results: Path) -> str:
    """What the product weighs, and times that are neither of one denoiser call nor of serving."""
    parts = ["# Weight and speed\n"]
    for name, make in (
        ("footprint", _footprint),
        ("embedding", _embedding),
        ("hoisting", _hoisting),
        ("throughput", _throughput),
    ):
        if record := load(name, results):
            parts.append(make(record))
    return "\n".join(parts)


def _footprint(record: Line) -> str:
    rows = []
    for name, (words, most) in FOOTPRINT.items():
        value = record[name]["median"] if isinstance(record[name], dict) else record[name]
        rows.append((words, f"{value:.3g}", f"{most:g}", "met" if value <= most else "NOT MET"))
    machine = record["machine"]
    return (
        "## Footprint\n\n"
        + table(("what", "figure", "at most", ""), rows)
        + f"\nWithout extras {record['base_mb']:.0f} MB. {record['rounds']} new processes each. "
        f"{machine['processor']}, {machine['cpus']} CPUs, load average {machine['load_average']}, "
        f"commit {record['commit']}; `python benchmarks/footprint.py`\n"
    )


def _embedding(record: Line) -> str:
    text = "## Embedding\n\nWhat each part does stands in `benchmarks/embedding.py`.\n\n"
    text += "".join(f"- {bar['bar']}: {bar['value']}, {_met(bar['met'])}\n" for bar in record["bars"])
    for part in ("throughput", "commands"):
        rows = [row for row in record["rows"] if row["part"] == part]
        names = [name for name in rows[0] if name not in ("part", "case")]
        text += "\n" + table((part, *names), ([row["case"], *(row[name] for name in names)] for row in rows))
    return text + (
        f"\n`{record['command']}`, commit {record['commit']}, {record['rounds']} interleaved rounds, "
        f"{record['processor']}, {record['cpus']} CPUs, load {record['load_before']} before; ONNX Runtime "
        f"{record['onnxruntime']}, Python {record['python']}.\n"
    )


def _met(met: bool) -> str:
    return "met" if met else "NOT MET"


def _hoisting(record: Line) -> str:
    def spread(values: list[float], scale: float = 1, unit: str = "") -> str:
        low, middle, high = (scale * value for value in values)
        return f"{middle:.1f}{unit} [{low:.1f}, {high:.1f}]"

    rows = (
        (
            case["batch"],
            case["latent_side"],
            spread(case["tokens_ms"]),
            spread(case["ready_ms"]),
            spread(case["saved_share"], 100, " %"),
            spread(case["projections_ms"]),
            *(f"{case['cond_bytes_per_row'][name]:,}" for name in ("tokens", "ready")),
        )
        for case in record["rows"]
    )
    sizes = "; ".join(
        f"{name} {size['tokens'] / 2**20:.2f} MiB of tokens, {size['ready'] / 2**20:.1f} MiB of keys and values"
        for name, size in record["full_size_bytes_per_row"].items()
    )
    products = record["products"]
    names = ("rows", "latent side", "tokens, ms", "keys and values, ms", "saved", "making them, ms")
    return (
        "## Hoisting: tokens, or keys and values made once per prompt\n\n"
        f"`{record['command']}`, {record['machine']}; load average {record['load_average'][0]:.1f} at the end.\n"
        f"ONNX Runtime {record['versions']['onnxruntime']}, one thread. CPU milliseconds of one denoiser call,\n"
        f"median and quartiles of {record['rounds']} interleaved calls; saved: by keys and values, paired.\n\n"
        + table((*names, "bytes a row, tokens", "bytes a row, keys and values"), rows)
        + f"\nThe graphs have {products['tokens']} and {products['ready']} matrix products. "
        + f"At full size one row of `cond` is, in float32: {sizes}.\n"
    )


def _throughput(record: Line) -> str:
    rows = (
        (
            row["batch"],
            *(f"{row[name]:.3g}" for name in ("ours_images_per_s", "diffusers_images_per_s")),
            f"{row['ratio_median']:.2f} ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})",
        )
        for row in record["rows"]
    )
    return (
        "## Throughput\n\n"
        + table(("batch", "ours, images/s", "diffusers eager, images/s", "times, median (range)"), rows)
        + f"\n{record['sampler']}, {record['num_steps']} steps, {record['threads']} threads, {record['rounds']} "
        f"interleaved rounds, bundle {record['bundle_id'][:12]}, {record['machine']}, commit {record['commit']}; "
        f"`{record['command']}`\n"
    )


def serving_page(results: Path) -> str:
    """Every part of serving that was measured, the ledger, and requests that no client should send."""
    record = load("serving", results)
    parts = (
        {row["part"]: {name: row[name] for name in row if name != "part"} for row in record["rows"]} if record else {}
    )
    text = "# Serving\n\nWhat each part does stands in `benchmarks/serving.py`.\n\n"
    text += "".join(f"{line}\n" for line in bar_lines(_serving_bars(parts)))
    for part, figures in parts.items():
        stamp = figures.pop("measured")
        text += (
            f"\n## {part}\n\n{_tree(figures)}\n"
            f"`{stamp['command']}`, commit {stamp['commit']}, {stamp['engine_threads']} engine thread(s), "
            f"{stamp['processor']}, {stamp['cpus']} CPUs, load {stamp['load_before']} before; onnxruntime "
            f"{stamp['onnxruntime']}, Python {stamp['python']}.\n"
        )
    if record := load("ledger", results):
        text += f"\n## ledger\n\n{_ledger(record)}"
    if record := load("malformed", results):
        text += (
            f"\n## malformed\n\n{table(record['answers'], [record['answers'].values()])}\n"
            f"Answers to {record['requests']:,} requests, seed {record['seed']}; {record['server_errors']} server "
            f"errors. Commit {record['commit']}, Python {record['python']}; `python benchmarks/malformed.py`\n"
        )
    if record := load("attacks", results):
        rows = record["rows"]
        text += (
            f"\n## attacks\n\n{table(rows[0], [row.values() for row in rows])}\n"
            f"{sum(row['held'] for row in rows)} of {len(rows)} attacks were held. Connections were kept for at most "
            f"{record['seconds']:g} s. {record['processor']}, {record['cpus']} CPUs, load {record['load_before']} "
            f"before; commit {record['commit']}; `python benchmarks/attacks.py`\n"
        )
    return text


def _serving_bars(parts: dict[str, Line]) -> list[Line]:
    """Every bar beside its figure; `met` is None where its part wasn't measured."""
    sizes, found = ("n = 1 to 16", "n = 1"), []
    for part, label, path, limit, least in (
        ("cold", "first image, s", ("first_image_p50_s",), 3.0, False),
        *(("cost", f"a request of {k} steps, ms", (f"{k} steps", "cost_p50_ms"), 2.0, False) for k in (8, 25)),
        ("throughput", "served over engine", ("served_over_engine",), 0.97, True),
        *(("peer", f"part of the gain of batching, {size}", (size, "part_of_the_gain"), 0.9, True) for size in sizes),
        *(("peer", f"p95 over one at a time, {size}", (size, "p95_over_one_at_a_time"), 1.0, False) for size in sizes),
        ("overload", "growth of memory", ("rss_growth",), 0.05, False),
        ("overload", "accepted and late", ("accepted_past_deadline",), 0, False),
        ("soak", "growth of memory", ("rss_growth",), 0.05, False),
        ("faults", "answers that are neither images nor a refusal", ("not_as_expected",), 0, False),
        ("faults", "images unlike those of a quiet run", ("images_not_as_in_quiet",), 0, False),
        ("faults", "images on the way at the end", ("in_progress_at_end",), 0, False),
    ):
        value: Any = parts.get(part)
        for name in path:
            value = None if value is None else value[name]
        met = None if value is None else (value >= limit if least else value <= limit)
        bar = f"{part}, {label}: at {'least' if least else 'most'} {limit:g}"
        found.append({"bar": bar, "value": value, "met": met})
    return found


def _tree(tree: Line) -> str:
    """A table; where every value is a table, one with a column for each."""
    columns = tree if all(isinstance(value, dict) for value in tree.values()) else {"": tree}
    names = next(iter(columns.values()))
    return table(("", *columns), ([name, *(_cell(column[name]) for column in columns.values())] for name in names))


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value).replace('"', "").strip("{}")


def _ledger(record: Line) -> str:
    rows = (
        (
            row["ledger"],
            row["images"],
            f"{row['draws_per_s']:,.0f}",
            f"{min(row['rounds']):,.0f}, {max(row['rounds']):,.0f}",
        )
        for row in record["rows"]
    )
    return table(("ledger", "images per request", "draws per second", "lowest, highest round"), rows) + (
        f"\nA draw is one image's code, leased and committed. Bar: {LEDGER:,} draws per second without fsync, at every "
        f"size of request. Median of {record['num_rounds']} interleaved rounds of {record['seconds']:g} s. "
        f"{record['machine']}, SQLite {record['sqlite']}, Python {record['python']}, load average "
        f"{record['load_average']:.1f} at the start, commit {record['commit']}; `python benchmarks/ledger.py`\n"
    )


def object_storage_page(results: Path) -> str:
    """A run into object storage that was killed, against the same in a folder."""
    record = load("object storage", results)
    kills = [(row["recorded"], row["whole_objects"], row["of"]) for row in record["rows"]]
    return (
        f"# Object storage\n\n{record['images']:,} digits of {record['n']:,} at {record['steps']} steps, in shards of "
        f"{record['shard_size']}, {record['workers']} workers; the store is moto's server on the same machine. "
        f"{record['bytes']:,} bytes; the same as in a folder: {'yes' if record['equal_to_local'] else 'NO'}."
        f"\n\nThe run was killed {len(kills)} times. What could be seen then, all of it equal to the folder's:\n\n"
        f"{table(('shards in the manifest', 'whole shards', 'of'), kills)}\n"
        f"{record['seconds_local']:.0f} s into the folder, {record['seconds_stored']:.0f} s into the store with "
        f"{len(kills) + 1} starts of Ray. Load {record['load_average']:.1f} before; the machine did other work "
        f"meanwhile: these are no figures of speed.\n\n`python {record['command']}`, commit {record['commit']}, "
        f"{record['machine']}, Python {record['python']}\n"
    )


def full_size_page(results: Path) -> str:
    """Steps of whole Stable Diffusion models: without a GPU, and on a CPU."""
    parts = ["# Full size\n"]
    if record := load("full size", results):
        parts.append(_full_size(record))
    if record := load("full size SD", results):
        parts.append(_full_size_sd(record))
    return "\n".join(parts)


def _full_size(record: Line) -> str:
    rows = (
        (
            *_measured(row),
            f"{row['bytes'] / 1e6:,.0f}",
            f"{row['load_before']:.1f} to {row['load_after']:.1f}",
            ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in row["seconds"].items()),
            row["commit"],
        )
        for row in record["rows"]
    )
    parameters = ", ".join(
        f"{row['step'].split('.')[0]} {row['parameters'] / 1e6:,.1f} M" for row in record["rows"] if "parameters" in row
    )
    names = ("step", "wall s", "CPU s", "peak GiB", "MB written", "load average", "seconds by phase", "commit")
    return (
        f"## Export and builds without a GPU\n\n`{record['command']}` on {record['machine']}; {record['settings']}.\n"
        f"Random weights: {parameters}. Versions: {_versions(record)}.\n\n"
        + _with_bars(table(names, rows), record)
        + f"{_LOAD}\nA build proves that the graph is accepted and compiled; nothing here ran on a GPU.\n"
    )


def _measured(row: Line) -> tuple[str, ...]:
    figures = f"{row['wall_s']:.1f}", f"{row['cpu_s']:.1f}", f"{row['peak_rss_gib']:.2f}"
    return row["step"].replace(".", ", "), *figures


def _versions(record: Line) -> str:
    return ", ".join(f"{name} {number}" for name, number in record["versions"].items())


def _with_bars(steps: str, record: Line) -> str:
    return "\n".join([steps, *bar_lines(record["bars"]), "", ""])


def _full_size_sd(record: Line) -> str:
    rows = (
        (
            *_measured(row),
            f"{row['bytes'] / 1e9:,.2f}",
            f"{row['load_before']:.1f} to {row['load_after']:.1f}",
            _note(row),
            row["commit"],
        )
        for row in record["rows"]
    )
    names = ("step", "wall s", "CPU s", "peak GiB", "GB written", "load average", "notes", "commit")
    return (
        f"## Stable Diffusion on a CPU\n\n`{record['command']}` on {record['machine']}; {record['settings']}. "
        f"Versions: {_versions(record)}.\n"
        "Weights are random: `checkpoint` writes and `indicator` adds them; both only make what is measured.\n\n"
        + _with_bars(table(names, rows), record)
        + f"{_LOAD}\nPeak memory is resident: pages of mapped weight files count.\n"
    )


def _note(row: Line) -> str:
    notes = []
    if "parameters" in row:
        notes.append(", ".join(f"{name} {number / 1e6:,.0f} M" for name, number in row["parameters"].items()))
    for key, word in (("parity_max_abs_error", "against torch"), ("difference_from_fp32", "against fp32")):
        if row.get(key):
            notes.append(f"{word} {max(row[key].values()):.1e}")
    if "image" in row:
        notes.append(f"{'x'.join(map(str, row['image']))}, std {row['grey_levels_std']:g} grey levels")
    return "; ".join(notes)
