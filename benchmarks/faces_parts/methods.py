"""The methods of the table, and which of them share a trained model."""

from dataclasses import dataclass, replace

GUIDANCE = 1.25  # of the codes: see `faces_parts/development.py`
LABELS, AUDITS, DRAWS = (64, 256), (64, 256), 3
LEAVES = (32, 64)
FEATURE_SETS = ("plain", "colour jitter")
CODES = "16 codes"


@dataclass(frozen=True)
class Method:
    """One row per biased set. `run` names the training run: methods with one name share it."""

    name: str
    kind: str  # vanilla | oracle | codes | calibrated | few-label | halving
    run: str
    count: int = 0  # labels, audits or leaves
    draw: int = 0  # of labels or audits
    features: str = ""  # of the tree
    guidance: float = GUIDANCE
    by_size: bool = False  # calibrated weights are close to the codes' sizes; else to even weights of the codes


def methods() -> dict[str, Method]:
    """By name, the most telling first."""
    found = [Method("vanilla", "vanilla", "vanilla")]
    few = [
        Method(f"few-label {n} #{draw}", "few-label", f"few-label {n} #{draw}", n, draw)
        for n in LABELS
        for draw in range(DRAWS)
    ]
    found += [*few[:DRAWS], Method("oracle", "oracle", "oracle"), Method(CODES, "codes", CODES)]
    found += [Method(f"calibrated {n} #{draw}", "calibrated", CODES, n, draw) for n in AUDITS for draw in range(DRAWS)]
    found += few[DRAWS:]
    found += [
        Method(f"halving {k}, {features}", "halving", f"halving {k}, {features}", k, features=features)
        for k in LEAVES
        for features in FEATURE_SETS
    ]
    found += [
        Method(f"calibrated by size {n} #{draw}", "calibrated", CODES, n, draw, by_size=True)
        for n in AUDITS
        for draw in range(DRAWS)
    ]
    # Added after the table was seen: what guidance costs in quality and gives in balance.
    by_size = [method for method in found if method.by_size]
    found += [replace(method, name=f"unguided {method.name}", guidance=1.0) for method in (*few, *by_size)]
    return {method.name: method for method in found}
