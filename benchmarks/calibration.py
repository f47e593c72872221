"""Calibration on the shipped digits: how far the achieved share is from the target with 16, 64 and 256 audited images.

    python benchmarks/calibration.py --work DIR     # the pool (resumable, minutes on one thread), the study, the table

A pool of 1,024 generated and judged images per code stands in for the generator: audits are drawn from its first half
without replacement, 200 times; the second half says what each code really gives. So the errors are those of
calibrating, without the chance of a sample and without the judge's own error.

Two sets of codes: the shipped ones, nearly pure, since discovery had found the digits; and "mixed" ones, where code k
takes (k mod 4)/8 of its images from all codes alike, so that no code is pure and codes differ.
"""

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np
import render
from calibration_parts import pool
from calibration_parts.study import ESTIMATORS, Codes, audits, uncalibrated
from measured_steps import commit
from store import RESULTS, save

BUNDLE, JUDGE, GROUPS = "digits", "digits", ("3", "8")
TARGETS = (0.5, 0.3, 0.7)  # share of the first group
AUDITS = (16, 64, 256)
DRAWS = 200


def study(work: Path) -> dict[str, Any]:
    """Every setting's figures."""
    records = pool.make(BUNDLE, JUDGE, work)
    shipped = Codes.of(records, *pool.sizes(BUNDLE), GROUPS)
    rows = []
    for name, codes in (("shipped", shipped), ("mixed", shipped.mixed())):
        for target in TARGETS:
            rows.append({"codes": name, "target": target} | uncalibrated(codes, target))
            for n in AUDITS:
                for scheme in ("even", "half by weights"):
                    for estimator in ESTIMATORS:
                        figures = audits(codes, target, n, scheme, estimator, DRAWS)
                        setting = {"codes": name, "target": target, "n": n, "scheme": scheme, "estimator": estimator}
                        rows.append(setting | figures)
    return {
        "bundle": BUNDLE,
        "judge": JUDGE,
        "groups": GROUPS,
        "pool_per_code": pool.PER_CODE,
        "draws": DRAWS,
        "machine": f"{platform.system()} {platform.machine()}, one thread",
        "numpy": np.__version__,
        "commit": commit(),
        "codes": {"shipped": shipped.summary(), "mixed": shipped.mixed().summary()},
        "rows": rows,
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=Path, required=True, help="Where the pool is kept.")
    arguments.add_argument("--results", type=Path, default=RESULTS, help="Folder of calibration.jsonl and its page.")
    options = arguments.parse_args()
    save("calibration", study(options.work), options.results)
    print(render.render("calibration", options.results), end="")


if __name__ == "__main__":
    main()
