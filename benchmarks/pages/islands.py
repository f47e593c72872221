"""The page of float32 islands in bf16 denoisers on the CPU."""

from pathlib import Path

from bench_parts import rows
from store import Line, read, table

_WORDS = {"none": "the bundle's graph", "hint": "OpenVINO's hint", "tuned": "the bundle's graph as ddm_rt runs it"}
_MODELS = {
    "shipped": "the shipped digits",
    "small": "5 M parameters, drawn weights",
}


def page(results: Path) -> str:
    """Kinds of islands, then single ones and whole blocks, for each model."""
    lines = read(results / "islands.jsonl")
    text = (
        "# Float32 in bf16 denoisers on the CPU\n\nWhat each row changes stands in `benchmarks/islands.py`. Errors are "
        "against the fp32 graph, relative, of each image: median [quartiles]. Speed is CPU time of the bundle's graph "
        "over that of the row: above 1 the row is faster. The first row is the bundle's graph once more: what it "
        'differs from 1 is the measurement\'s own. "without" takes islands away, "with" puts more in.\n'
    )
    text += _against_the_hint(results)
    for name, words in _MODELS.items():
        chosen = [line for line in lines if line["subject"] == name]
        if not chosen:
            continue
        kinds = [line for line in chosen if line["layer"] == "all" and line["speedup"]]
        rounded = [line for line in chosen if line["change"] == "rounded"]
        layers = [line for line in chosen if line["layer"] != "all"]
        batches = list(kinds[0]["speedup"])
        names = ("graph", "error", "times the bundle's", *(f"speed, batch {batch}" for batch in batches))
        text += f"\n## {words}\n\n" + table(names, (_row(line, batches) for line in kinds))
        names = ("one island or block", "error", "times the bundle's", f"speed, batch {batches[-1]}")
        text += f"\n### {words}: one at a time\n\n" + table(names, (_row(line, batches[-1:]) for line in layers))
        names = ("rounded at every operator", "error", "times the bundle's")
        text += f"\n### {words}: on onnx's own evaluator\n\n" + table(names, (_row(line, []) for line in rounded))
        first = chosen[0]
        text += (
            f"\n{first['images']} images, {first['rounds']} interleaved rounds, one thread, {first['processor']}, "
            f"OpenVINO {first['openvino']}, commit {first['commit']}; `python benchmarks/islands.py --work DIR`\n"
        )
    return text


def _against_the_hint(results: Path) -> str:
    """Of `run.py step-bf16`: the two of each case, and the hint's time over ours, paired by round."""
    measured = [row for row in rows.read(results / "step.jsonl") if row.benchmark == "step-bf16"]
    if not measured:
        return ""
    cells = []
    for case in dict.fromkeys(row.case for row in measured):
        found = {row.configuration: row for row in measured if row.case == case}
        hint, ours = found["OpenVINO bf16"], found["ours, openvino bf16"]
        ratios = [theirs / own for theirs, own in zip(hint.samples_ms, ours.samples_ms, strict=True)]
        times = (f"{each.latency_p50_ms:.3g}" for each in (hint, ours))
        errors = (f"{each.error:.1e}" for each in (hint, ours))
        cells.append((case, *times, _spread(list(rows.quartiles(ratios)), ".3f"), *errors, len(ratios)))
    names = ("model", "hint, ms", "ours, ms", "hint's time over ours", "hint's error", "our error", "rounds")
    first, commits = measured[0], ", ".join(dict.fromkeys(row.commit for row in measured))
    return (
        "\n## Against the hint, by the clock\n\n"
        + table(names, cells)
        + f"\nDrawn weights, two threads, medians and [quartiles] of rounds, {first.machine.processor}, load average "
        f"{first.machine.load_average:g}, OpenVINO {first.versions['openvino'].split('-')[0]}, commit {commits}; "
        "`python benchmarks/run.py step-bf16`; more in [step](step.md)\n"
    )


def _row(line: Line, batches: list[str]) -> tuple[str, ...]:
    own = _WORDS.get("none" if line["kind"] == "as the bundle is" else line["change"])
    change = "without" if line["change"] == "rounded" else line["change"]
    where = line["kind"] if line["layer"] == "all" else f"{line['kind']}, {line['layer']}"
    return (
        own or f"{change} {where}",
        _spread(line["error"], ".2e"),
        _spread(line["error_ratio"], ".3f"),
        *(_spread(line["speedup"][batch], ".3f") for batch in batches),
    )


def _spread(values: list[float], digits: str) -> str:
    low, middle, high = values
    return f"{middle:{digits}} [{low:{digits}}, {high:{digits}}]"
