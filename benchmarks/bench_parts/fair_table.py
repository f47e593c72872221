"""The table of `fair_throughput.py`: speed beside balance and quality, what fails a gate included."""

from collections.abc import Mapping
from typing import Any

from ddm_rt.engine.gates import MAX_FD, MAX_FRECHET_RATIO
from ddm_rt.evaluate.comparison.paired import Decision

Tree = Mapping[str, Any]


def best(tree: Tree, name: str) -> float:
    """Images per second at the batch size that suits the configuration best: the median."""
    speed = tree["speeds"][name]
    return float(speed["images_per_s"][str(speed["best_batch"])][1])


def markdown(tree: Tree) -> str:
    baseline, reference = best(tree, tree["baseline"]), tree["gates"][tree["reference"]]
    batches = list(tree["speeds"][tree["baseline"]]["images_per_s"])
    head = " | ".join(f"batch {batch}" for batch in batches)
    lines = [
        "# Fair throughput",
        "",
        f"Images per second, medians [quartiles] of {tree['rounds']} interleaved rounds; times: of the authors' way, "
        "each at the batch size that suits it best.",
        "",
        f"| configuration | what | precision | {head} | times | FD_ddm [95 %] | Frechet (of the teacher's) | drift | "
        "peak MiB | passes |",
        f"| --- | --- | --- | {'---: | ' * len(batches)}---: | --- | --- | --- | ---: | --- |",
    ]
    for name in tree["order"]:
        gate, speed = tree["gates"][name], tree["speeds"][name]
        cells = []
        for batch in batches:
            low, middle, high = speed["images_per_s"][batch]
            text = f"{middle:.3g} [{low:.3g}, {high:.3g}]"
            cells.append(f"**{text}**" if str(speed["best_batch"]) == batch else text)
        ratio = gate["frechet"] / reference["frechet"]
        low, high = gate["balance"]["fd_ddm_interval"]
        lines.append(
            f"| {name} | {gate['what']} | {gate['precision']} | {' | '.join(cells)} "
            f"| {best(tree, name) / baseline:.1f} | {gate['fd']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {gate['frechet']:.2f} ({ratio:.2f}) | {_drift(gate)} | {speed['peak_mem_mib']:.0f} "
            f"| {'yes' if tree['passes'][name] else 'no'} |"
        )
    machine = tree["machine"]
    passing = [name for name in tree["order"] if tree["passes"][name]]
    fastest = max(passing, key=lambda name: best(tree, name), default=None)
    if fastest is not None:
        single = tree["speeds"][fastest]["images_per_s"].get("1")
        alone = tree["speeds"][tree["baseline"]]["images_per_s"].get("1")
        lines += [
            "",
            f"The fastest that passes both gates is {fastest}: "
            f"{best(tree, fastest) / baseline:.1f} times the authors' way"
            + ("." if single is None else f"; at batch 1, {single[1] / alone[1]:.1f} times it."),
        ]
    lines += [
        "",
        f"Gates: FD_ddm at most {MAX_FD:g}, Frechet distance at most {MAX_FRECHET_RATIO:g} of that of "
        f"{tree['reference']}. n = {tree['n']} images a row, seed {tree['seed']}, groups "
        f"{' and '.join(tree['groups'])}. Drift: what `ddm-rt compare` says of the same seeds and codes.",
        "",
        f"{machine['processor']}, {machine['cpus']} CPUs, {tree['threads']} threads, load average before "
        f"{machine['load_average']}, commit {tree['commit']}; `{tree['command']}`",
        "",
    ]
    return "\n".join(lines)


def _drift(gate: Mapping[str, Any]) -> str:
    return "" if "drift" not in gate else Decision(gate["drift"]["decision"]).name.lower()
