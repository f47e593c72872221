"""Digits through a small trained VAE and prompts: does balance survive the latent, text-conditioned path?

    python benchmarks/latent_digits.py                # everything that is missing, one cell after the other; resumable
    python benchmarks/latent_digits.py --table        # the table of what is there
    python benchmarks/latent_digits.py --development  # the development pair instead of the table's

Each cell goes the way of a user with a checkpoint of their own: `ddm-rt train --base --data`, `ddm-rt export`, images
from a prompt through ONNX Runtime with joint guidance; the shipped judge measures. The base checkpoint is made here
(`latent_digits_parts/base.py`): its UNet and text encoder are random, so the whole UNet is trained (LoRA rank 0), and
its VAE has seen neither digit of the pair. Prompts name no digit, so they can't tell the groups apart. Settings were
chosen on the development pair (`Settings` in cells.py; results/development.md has what was tried) and the budget is
that of `balance.py`, whose rows stand beside ours. One seed for each cell. The denoiser predicts x0, as the pixel
models do; Stable Diffusion's checkpoints predict epsilon or v, and at this budget epsilon fails.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

from latent_digits_parts import cells as parts
from latent_digits_parts import table as tables

from ddm_rt.files import write_atomic, write_json

RESULTS = Path(__file__).parent / "results" / "latent_digits.json"


def run_set(name: str, work: Path, tree: dict[str, Any], results: Path) -> None:
    """The VAE's figures and every method of a set; what `tree` holds already is left."""
    from latent_digits_parts.measuring import measure, measure_vae

    from ddm_rt.evaluate.judge import Judge

    judge = Judge.load("digits")
    rows = tree["development" if name in parts.DEVELOPMENT else "sets"].setdefault(name, {})
    for method in ("vae", *parts.METHODS):
        if method in rows:
            continue
        if method == "vae":
            cell = parts.Cell(name, next(iter(parts.METHODS)), work)
            cell.base(_log(f"{name} VAE"))
            row = measure_vae(cell, judge)
        else:
            cell = parts.Cell(name, method, work)
            cell.train()
            bundle = cell.export()
            row = measure(cell, bundle, cell.sample(bundle, judge), judge)
        rows[method] = row | {"commit": _commit()}
        write_json(results, tree)
        print(f"{name} {method}: done", flush=True)


def read(results: Path) -> dict[str, Any]:
    """The results so far. Their settings must be today's."""
    from latent_digits_parts.measuring import machine

    settings = vars(parts.SETTINGS) | {"n": parts.N, "prompt": parts.images.PROMPT, "guided": parts.GUIDANCE}
    if not results.is_file():
        return {"settings": settings, "machine": machine(), "development": {}, "sets": {}}
    tree: dict[str, Any] = json.loads(results.read_bytes())
    if tree["settings"] != settings:
        raise SystemExit(f"{results}: made with other settings; move it away to run anew")
    return tree


def _log(label: str) -> Any:
    def callback(done: int, error: float) -> None:
        if done % 100 == 0:
            print(f"{label}: {done} {error:.4f}", flush=True)

    return callback


def _commit() -> str:
    """Of this file's own checkout, wherever the command is given; "unknown" for a copy of one."""
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/latent_digits"), help="what isn't committed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--sets", nargs="+", choices=(*parts.SETS, *parts.DEVELOPMENT), help="these alone")
    parser.add_argument("--development", action="store_true", help="the development pair")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    arguments = parser.parse_args()
    tree = read(arguments.results)
    if not arguments.table:
        for name in arguments.sets or (parts.DEVELOPMENT if arguments.development else parts.SETS):
            run_set(name, arguments.work, tree, arguments.results)
    text = tables.table(tree)
    write_atomic(arguments.results.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
