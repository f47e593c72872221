"""Digits through a small trained VAE and prompts: does balance survive the latent, text-conditioned path?

    python benchmarks/latent_digits.py                # everything that is missing, one cell after the other; resumable
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
from pathlib import Path
from typing import Any

import render
from latent_digits_parts import cells as parts
from measured_steps import commit
from store import RESULTS, put, read


def run_set(name: str, work: Path, results: Path) -> None:
    """The VAE's figures and every method of a set; what is there with today's settings is left."""
    from latent_digits_parts.measuring import machine, measure, measure_vae

    from ddm_rt.evaluate.judge import Judge

    judge = Judge.load("digits")
    path = results / "latent_digits.jsonl"
    settings = vars(parts.SETTINGS) | {"n": parts.N, "prompt": parts.images.PROMPT, "guided": parts.GUIDANCE}
    there = {line["method"]: line["settings"] for line in read(path) if line["set"] == name}
    for method in ("vae", *parts.METHODS):
        if method in there:
            if there[method] != settings:
                raise SystemExit(f"{path}: {name} {method} was made with other settings; take its line out to run anew")
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
        line = {"set": name, "method": method, "settings": settings, **row, "machine": machine(), "commit": commit()}
        put(path, [line], "set", "method")
        print(f"{name} {method}: done", flush=True)


def _log(label: str) -> Any:
    def callback(done: int, error: float) -> None:
        if done % 100 == 0:
            print(f"{label}: {done} {error:.4f}", flush=True)

    return callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/latent_digits"), help="what isn't committed")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of latent_digits.jsonl and its page")
    parser.add_argument("--sets", nargs="+", choices=(*parts.SETS, *parts.DEVELOPMENT), help="these alone")
    parser.add_argument("--development", action="store_true", help="the development pair")
    arguments = parser.parse_args()
    for name in arguments.sets or (parts.DEVELOPMENT if arguments.development else parts.SETS):
        run_set(name, arguments.work, arguments.results)
    print(render.render("latent_digits", arguments.results))


if __name__ == "__main__":
    main()
