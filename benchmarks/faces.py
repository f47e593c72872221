"""The faces experiment: three biased sets of cartoon faces, one training budget, one run per cell.

    python benchmarks/faces.py FACES.npz                # everything that is missing, two cells side by side; resumable
    python benchmarks/faces.py FACES.npz --development  # what the guidance was chosen by
    python benchmarks/faces.py FACES.npz --probe-draws  # few-label codes over 20 draws of labels, without diffusion
    python benchmarks/faces.py FACES.npz --floor        # Frechet distances of real faces at the cells' n

FACES.npz holds cartoon faces with exact gender and race (`faces_parts/sets.py` says in which form); they are no
photographs. 45 % of it may be trained on, 39 % train the judge, the rest measures the judge and is the yardstick.
"""

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import render
from faces_parts import floor, judging, probe_draws, sets
from faces_parts.cells import Cell, slug
from faces_parts.methods import methods
from measured_steps import commit
from pages.faces import cells
from store import RESULTS, put, read, save


def run_cell(name: str, method: str, faces: sets.Faces, work: Path, results: Path, train_only: bool = False) -> None:
    """Train, sample and measure; each part is skipped where it is there."""
    from faces_parts.measuring import measure

    judge = judging.make(sets.split(faces, "judge"), sets.split(faces, "reference"), work / "judge.onnx")
    cell = Cell(faces, name, methods()[method], work)
    bundle = cell.fit(_log(f"{name} {method}"))
    if train_only:
        return
    sampled = cell.sample(bundle, judge)
    tree = measure(cell, judge, sets.split(faces, "reference"), sampled)
    put(results / "faces.jsonl", [tree | {"commit": commit()}], "set", "method")


def develop(faces: sets.Faces, work: Path, results: Path) -> None:
    from faces_parts import development

    reference = sets.split(faces, "reference")
    judge = judging.make(sets.split(faces, "judge"), reference, work / "judge.onnx")
    tree = development.measure(faces, judge, reference, work, _log(development.SET))
    save("faces: guidance", tree | {"commit": commit()}, results)


def _log(label: str) -> Any:
    def callback(done: int, total: int, figures: dict[str, float]) -> None:
        if done % 250 == 0 or done == total:
            print(f"{label}: {done}/{total} {figures}", flush=True)

    return callback


def _spawn(cell: tuple[str, str], arguments: argparse.Namespace) -> None:
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), __file__, str(arguments.faces)]
    command += ["--work", str(arguments.work), "--results", str(arguments.results), "--cell", *cell]
    command += ["--train-only"] if arguments.train_only else []
    log = arguments.work / f"{slug(' '.join(cell))}.log"
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode
    print(f"{cell[0]} {cell[1]}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, help="the .npz file of faces")
    parser.add_argument("--work", type=Path, default=Path("runs/faces"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of faces.jsonl, codes.jsonl and faces.md")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, one thread each")
    parser.add_argument("--cell", nargs=2, metavar=("SET", "METHOD"), help="this cell alone, in this process")
    parser.add_argument("--only", default="", help="cells whose set and method contain this text")
    parser.add_argument("--development", action="store_true", help="the measurement that guidance was chosen by")
    parser.add_argument("--probe-draws", action="store_true", help="few-label codes over many draws of labels")
    parser.add_argument("--floor", action="store_true", help="the noise floor of the smallest groups' distances")
    parser.add_argument("--train-only", action="store_true", help="train the missing cells, measure them later")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    faces = sets.read(arguments.faces)
    if arguments.cell:
        run_cell(*arguments.cell, faces, arguments.work, arguments.results, arguments.train_only)
        return
    if arguments.development:
        develop(faces, arguments.work, arguments.results)
    elif arguments.probe_draws:
        tree = probe_draws.measure(faces, arguments.work)
        save("faces: draws of labels", tree | {"commit": commit()}, arguments.results)
    elif arguments.floor:
        save("faces: noise floor", floor.measure(faces, arguments.work) | {"commit": commit()}, arguments.results)
    else:
        judging.make(sets.split(faces, "judge"), sets.split(faces, "reference"), arguments.work / "judge.onnx")
        there = [(line["set"], line["method"]) for line in read(arguments.results / "faces.jsonl")]
        missing = [cell for cell in cells() if arguments.only in " ".join(cell) and cell not in there]
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(lambda cell: _spawn(cell, arguments), missing))
    print(render.render("faces", arguments.results))


if __name__ == "__main__":
    main()
