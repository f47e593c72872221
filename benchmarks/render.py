"""Write the pages and charts of benchmarks/results from its lines of JSON. It takes seconds and measures nothing.

python benchmarks/render.py [--results DIR]
"""

import argparse
from collections.abc import Callable
from pathlib import Path

from bench_parts import rows
from pages import digits, faces, fair_throughput, islands, paper, rivals, shortcuts, speed, steering, studies, training
from store import RESULTS

from ddm_rt.files import write_atomic

# Page -> the file that it is made from, and what makes it; fair_throughput.md reads a few other files besides.
PAGES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "balance.md": ("balance", digits.balance_page),
    "paper.md": ("paper", paper.page),
    "latent_digits.md": ("latent_digits", digits.latent_page),
    "steering.md": ("steering", steering.page),
    "distill.table.md": ("distill", digits.distill_page),
    "faces.md": ("faces", faces.page),
    "rivals.md": ("rivals", rivals.page),
    "codes.md": ("codes", studies.codes_page),
    "joint_faces.md": ("joint_faces", studies.joint_faces_page),
    "splits.md": ("splits", studies.splits_page),
    "calibration.md": ("calibration", studies.calibration_page),
    "drift.md": ("drift", studies.drift_page),
    "step.md": ("step", lambda results: rows.markdown(rows.read(results / "step.jsonl"))),
    "islands.md": ("islands", islands.page),
    "train.md": ("train", training.page),
    "fair_throughput.md": ("fair_throughput", fair_throughput.page),
    "fair_throughput.svg": ("fair_throughput", fair_throughput.chart),
    "fair_throughput_ladder.svg": ("fair_throughput", fair_throughput.ladder),
    "shortcuts.md": ("shortcuts", shortcuts.page),
    "speed.md": ("speed", speed.speed_page),
    "serving.md": ("serving", speed.serving_page),
    "object_storage.md": ("object_storage", speed.object_storage_page),
    "full_size.md": ("full_size", speed.full_size_page),
}


def pages(results: Path = RESULTS) -> dict[str, str]:
    """Every page whose file is there."""
    return {page: make(results) for page, (data, make) in PAGES.items() if (results / f"{data}.jsonl").is_file()}


def render(data: str, results: Path = RESULTS) -> str:
    """Write the pages of one file, and return the first of them."""
    made = {page: make(results) for page, (of, make) in PAGES.items() if of == data}
    for page, text in made.items():
        write_atomic(results / page, text)
    return next(iter(made.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    results = parser.parse_args().results
    for page, text in pages(results).items():
        write_atomic(results / page, text)


if __name__ == "__main__":
    main()
