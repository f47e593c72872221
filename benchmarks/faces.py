"""The faces experiment: three biased sets of cartoon faces, one training budget, one run per cell.

    python benchmarks/faces.py FACES.npz                # everything that is missing, two cells side by side; resumable
    python benchmarks/faces.py --table                  # the table of what is there
    python benchmarks/faces.py FACES.npz --development  # what the guidance was chosen by
    python benchmarks/faces.py FACES.npz --probe-draws  # few-label codes over 20 draws of labels, without diffusion
    python benchmarks/faces.py FACES.npz --floor        # Frechet distances of real faces at the cells' n

FACES.npz holds cartoon faces with exact gender and race (`faces_parts/sets.py` says in which form); they are no
photographs. 45 % of it may be trained on, 39 % train the judge, the rest measures the judge and is the yardstick.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from faces_label_free import table as rules_table
from faces_parts import floor, judging, probe_draws, sets
from faces_parts.cells import Cell, slug
from faces_parts.methods import methods

from ddm_rt.files import write_atomic, write_json

RESULTS = Path(__file__).parent / "results" / "faces"
HEADER = """Cartoon faces at 32x32, 1,250 training images a set, 1,200 steps, one training seed, DDIM 25, n = 1,000.
Shares are as judged, not corrected for the judge (accuracy on 960 held-out faces: gender .977, race .999; corrected
shares are in the JSON files). Audits are by this judge, half of them adaptive. Indicator guidance is 1.25, chosen on
another set before the table (`faces/development.json`); rows called "unguided" (1.0) were added after it was seen.
"calibrated" keeps weights close to even weights of 16 codes, "calibrated by size" to the codes' sizes, which was added
after it was seen, too. Luminance W1: Wasserstein-1 distance of the cheeks' luminance to the balanced reference. n_eff:
effective number of training images behind the samples. Frechet distances are in the judge's features, no FID.

"""


def cells() -> list[tuple[str, str]]:
    """(set, method), the most telling first: what the bars are about, one set after the other, then the rest."""
    every = [(name, method) for name in sets.SETS for method in methods()]
    return sorted(every, key=lambda cell: methods()[cell[1]].kind == "halving")


def result_path(name: str, method: str, results: Path = RESULTS) -> Path:
    return results / f"{slug(name)}_{slug(method)}.json"


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
    write_json(result_path(name, method, results), tree | {"commit": _commit()})


def develop(faces: sets.Faces, work: Path, results: Path) -> None:
    from faces_parts import development

    reference = sets.split(faces, "reference")
    judge = judging.make(sets.split(faces, "judge"), reference, work / "judge.onnx")
    tree = development.measure(faces, judge, reference, work, _log(development.SET))
    write_json(results / "development.json", tree | {"commit": _commit()})


def _log(label: str) -> Any:
    def callback(done: int, total: int, figures: dict[str, float]) -> None:
        if done % 250 == 0 or done == total:
            print(f"{label}: {done}/{total} {figures}", flush=True)

    return callback


def _commit() -> str:
    where = Path(__file__).parent
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=where
    )
    return done.stdout.strip() or os.environ.get("FACES_COMMIT", "unknown")


def _spawn(cell: tuple[str, str], arguments: argparse.Namespace) -> None:
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), __file__, str(arguments.faces)]
    command += ["--work", str(arguments.work), "--results", str(arguments.results), "--cell", *cell]
    command += ["--train-only"] if arguments.train_only else []
    log = arguments.work / f"{result_path(*cell).stem}.log"
    with log.open("a") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode
    print(f"{cell[0]} {cell[1]}: {'done' if code == 0 else f'failed, see {log}'}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faces", type=Path, nargs="?", help="the .npz file of faces")
    parser.add_argument("--work", type=Path, default=Path("runs/faces"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="one JSON file per cell")
    parser.add_argument("--workers", type=int, default=2, help="cells side by side, one thread each")
    parser.add_argument("--cell", nargs=2, metavar=("SET", "METHOD"), help="this cell alone, in this process")
    parser.add_argument("--only", default="", help="cells whose set and method contain this text")
    parser.add_argument("--development", action="store_true", help="the measurement that guidance was chosen by")
    parser.add_argument("--probe-draws", action="store_true", help="few-label codes over many draws of labels")
    parser.add_argument("--floor", action="store_true", help="the noise floor of the smallest groups' distances")
    parser.add_argument("--train-only", action="store_true", help="train the missing cells, measure them later")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    arguments = parser.parse_args()
    if not arguments.table:
        if arguments.faces is None:
            parser.error("the .npz file of faces is needed")
        arguments.work.mkdir(parents=True, exist_ok=True)
        faces = sets.read(arguments.faces)
        if arguments.development:
            develop(faces, arguments.work, arguments.results)
            return
        if arguments.probe_draws:
            tree = probe_draws.measure(faces, arguments.work)
            write_json(arguments.results / "probe_draws.json", tree | {"commit": _commit()})
            return
        if arguments.floor:
            tree = floor.measure(faces, arguments.work)
            write_json(arguments.results / "floor.json", tree | {"commit": _commit()})
            return
        if arguments.cell:
            run_cell(*arguments.cell, faces, arguments.work, arguments.results, arguments.train_only)
            return
        judging.make(sets.split(faces, "judge"), sets.split(faces, "reference"), arguments.work / "judge.onnx")
        missing = [
            cell
            for cell in cells()
            if arguments.only in " ".join(cell) and not result_path(*cell, arguments.results).is_file()
        ]
        with ThreadPoolExecutor(arguments.workers) as pool:
            list(pool.map(lambda cell: _spawn(cell, arguments), missing))
    text = report(arguments.results)
    write_atomic(arguments.results.with_suffix(".md"), text)
    print(text)


def report(results: Path) -> str:
    """Markdown: the table with its bars, then the label-free rules by clustering alone where they were measured."""
    from faces_parts.tables import table

    trees = {path.stem: json.loads(path.read_bytes()) for path in sorted(results.glob("*.json"))}
    text = HEADER + table(
        [tree for tree in trees.values() if "method" in tree], cells(), trees.get("floor", {}).get("floor", {})
    )
    if "probe_draws" in trees:
        text += "\nFew-label codes over other draws of labels, by the codes' composition\n\n"
        text += probe_draws.table(trees["probe_draws"])
    if "label_free" in trees:
        text += f"\nLabel-free rules, by clustering alone: FD_L2 of gender / race\n\n{rules_table(trees['label_free'])}"
    return text


if __name__ == "__main__":
    main()
