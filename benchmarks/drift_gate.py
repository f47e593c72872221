"""How often the drift gate errs, on simulated pairs with a known drift.

    python benchmarks/drift_gate.py

K even groups; a share `discordance` of the pairs changes its label, evenly over all changes, save that `drift` of all
pairs moves from one group to another on top. A false alarm is "drift" where there is none; a miss is "equivalent" where
the drift is the margin (.03) or more; both are meant to stay within 5 %. A drift below the margin may get any answer.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import render
from measured_steps import commit
from store import RESULTS, save

from ddm_rt.evaluate.comparison.paired import ALPHA, MARGIN, Decision, Table, decide
from ddm_rt.evaluate.intervals import wilson

GROUPS, SIZES, DISCORDANCE, DRIFTS = (2, 4), (300, 1000, 3000), (0.02, 0.05, 0.10), (0.0, 0.02, 0.03, 0.05)


def draw(rng: np.random.Generator, n: int, groups: int, discordance: float, drift: float) -> Table:
    cells = np.full((groups, groups), (discordance - drift) / (groups * (groups - 1)))
    np.fill_diagonal(cells, (1 - discordance) / groups)
    cells[0, 1] += drift
    return rng.multinomial(n, cells.ravel()).reshape(groups, groups)


def cell(n: int, groups: int, discordance: float, drift: float, runs: int, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng([seed, n, groups, round(1000 * discordance), round(1000 * drift)])
    names = [f"group {k}" for k in range(groups)]
    found = [decide(draw(rng, n, groups, discordance, drift), names).decision for _ in range(runs)]
    counts = {decision.name.lower(): found.count(decision) for decision in Decision}
    error = "drift" if drift == 0 else "equivalent" if drift >= MARGIN else None
    return {
        "groups": groups,
        "n": n,
        "discordance": discordance,
        "drift": drift,
        "rates": {name: count / runs for name, count in counts.items()},
        "error": error,
        "error_interval": None if error is None else wilson(counts[error], runs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of drift.jsonl and drift.md")
    arguments = parser.parse_args()
    rows = [
        cell(n, groups, discordance, drift, arguments.runs, arguments.seed)
        for groups in GROUPS
        for n in SIZES
        for discordance in DISCORDANCE
        for drift in DRIFTS
        if drift <= discordance
    ]
    result = {"runs": arguments.runs, "seed": arguments.seed, "margin": MARGIN, "alpha": ALPHA, "commit": commit()}
    save("drift gate", result | {"rows": rows}, arguments.results)
    print(render.render("drift", arguments.results))


if __name__ == "__main__":
    main()
