"""What holding an attribute costs on the codes of the faces experiment: gender even, race held.

    python benchmarks/hold.py

Nothing is trained or drawn: the shares of each code are those of its training images, all of them labelled, as
results/faces.jsonl has them. So the figures say how far the codes reach, without the error of an audit. "now" counts
from race's shares under even weights of the codes, "even" from even shares of race.
"""

import numpy as np
from store import RESULTS, read, table

from ddm_rt.sample.calibration.hold import distance, nearest
from ddm_rt.sample.calibration.tilt import effective_number, tilt

BOUNDS = (0.2, 0.1, 0.05, 0.02)


def main() -> None:
    rows = []
    for line in read(RESULTS / "faces.jsonl"):
        if line["method"] == "16 codes" and line["set"].startswith("gender"):
            rows += _rows(line["set"], {name: np.array(rows) for name, rows in line["codes_against_labels"].items()})
    heads = ("set", "hold", "share of women", "race off its present shares", "race FD_L2", "codes", "training images")
    print(table(heads, rows))


def _rows(name: str, counts: dict[str, np.ndarray]) -> list[list[str]]:
    gender, race = ((table_ + 1e-9) / (table_ + 1e-9).sum(axis=1, keepdims=True) for table_ in counts.values())
    base, sizes = np.full(len(gender), 1 / len(gender)), counts["gender"].sum(axis=1).astype(float)
    now, even, target = base @ race, np.full(race.shape[1], 1 / race.shape[1]), np.array([0.5, 0.5])

    def row(hold: str, weights: np.ndarray) -> list[str]:
        share = f"{(weights @ gender)[0]:.3f}"
        off, fd = (f"{distance(weights, race, wanted):.3f}" for wanted in (now, even))
        return [
            name,
            hold,
            share,
            off,
            fd,
            f"{effective_number(weights):.1f}",
            f"{effective_number(weights, sizes):.0f}",
        ]

    found = [row("codes alike, no target", base), row("none", tilt(gender, target, base).weights)]
    for label, wanted in (("now", now), ("even", even)):
        for bound in BOUNDS:
            weights = nearest(gender, target, race, wanted, bound, base, 0.0)
            met = distance(weights, race, wanted) <= bound + 1e-4
            if not met:
                weights = nearest(gender, target, race, wanted, bound, base, 1e-4)
            found.append(row(f"{label} <= {bound:g}{'' if met else ', not with even gender'}", weights))
    return found


if __name__ == "__main__":
    main()
