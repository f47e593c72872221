"""Codes that steer a finished model, without training, beside codes that a model was trained with.

    python benchmarks/steering.py --balance runs/balance --latents runs/latent_digits    # what is missing; resumable

The models are the plain ones of `balance.py` and `latent_digits.py`, and are trained where they aren't there. Codes are
discovered as for the trained ones, by the same rule, and so their rows in balance.jsonl and latent_digits.jsonl can
stand beside ours: same n, first seed, judge and reference. Strength and place were chosen on the pair 7v8 alone
(results/development.md). A steered model has one branch; so has the plain one, whose step it is timed against: calls in
turns, CPU time, one thread.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort
import render
from balance import MIN_PER_GROUP, SEED, N, slug, train_cell
from latent_digits_parts import cells as latents
from latent_digits_parts.images import PROMPT
from measured_steps import commit
from store import RESULTS, of_evaluation, put, read

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.config import RunConfig, SteeringSite
from ddm_rt.evaluate.evaluation import evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import generate_until, labelled, three_channels
from ddm_rt.export.run import export_run
from ddm_rt.graph_files import open_session
from ddm_rt.model.assemble import read_file
from ddm_rt.runtime import Codes
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.train.steering.run import steer

PIXELS, LATENTS = "pixels", "latents"
BATCH, ROUNDS = 16, 60  # of the timing


class Cell(NamedTuple):
    """A set, the kind of model, and where it is steered."""

    set: str
    model: str
    site: SteeringSite
    guidance_scale: float = 1.0  # text; 1: one branch


CELLS = (
    Cell("3v8 4:1", PIXELS, SteeringSite.PREDICTION),
    Cell("3v8 1:4", PIXELS, SteeringSite.PREDICTION),
    Cell("3v8 4:1", LATENTS, SteeringSite.PREDICTION),
    Cell("3v8 4:1", LATENTS, SteeringSite.ATTENTION),
)
KEY = ("set", "model", "site", "guidance_scale")


class Places(NamedTuple):
    """Where runs and bundles are kept."""

    balance: Path
    latents: Path
    work: Path


def plain_run(cell: Cell, places: Places) -> Path:
    """The model's run, trained if it isn't there."""
    if cell.model == LATENTS:
        trained = latents.Cell(cell.set, "vanilla", places.latents)
        trained.train()
        return trained.folder / "run"
    run = places.balance / slug(cell.set, "vanilla") / "run"
    if not (run / "weights.safetensors").is_file():
        train_cell(cell.set, "vanilla", places.balance)
    return run


def steered_run(cell: Cell, places: Places) -> Path:
    """The run with codes, which are found once for a set and model."""
    folder = places.work / slug(f"{cell.model} {cell.set}", cell.site)
    if (folder / "run").is_dir():
        return folder / "run"
    folder.mkdir(parents=True, exist_ok=True)
    codes = places.work / f"{slug(cell.model, cell.set)}.json"
    fields = {"codes.source": str(codes)} if codes.is_file() else {}
    run = steer(plain_run(cell, places), folder / "run", fields, site=cell.site)
    if not codes.is_file():
        top_of = read_file(Codes, run / "codes.json").top_of
        codes.write_text(json.dumps(json.loads((run / "assignment.json").read_bytes()) | {"top_code": top_of}))
    return run


def exported(run: Path, place: Path) -> Bundle:
    """The bundle of `run` at `place`, made if it isn't there."""
    return Bundle.load(place) if place.is_dir() else export_run(run, place)


def measure(cell: Cell, places: Places, judge: Judge) -> dict[str, Any]:
    """A line of the results."""
    run = steered_run(cell, places)
    config = read_file(RunConfig, run / "config.json")
    steering = config.steering
    assert steering is not None
    bundle = exported(run, run.with_name("bundle"))
    groups = tuple(cell.set.split()[0].split("v"))
    text: dict[str, Any] = {}
    if cell.model == LATENTS:
        text = {"prompt": PROMPT, "guidance_scale": cell.guidance_scale}
    pipeline = Pipeline.load(bundle, backend="onnxruntime", threads=1)
    sampled = generate_until(pipeline, judge, groups, N, SEED, MIN_PER_GROUP, text=text)
    of_digits = config.data.model_copy(
        update={"source": latents.SETS.get(cell.set, config.data.source), "prompt": None}
    )
    train = data.load(of_digits)
    figures = evaluate(
        sampled.images,
        sampled.codes,
        judge,
        groups,
        labelled(f"digits:{','.join(groups)}", "reference", of_digits),
        three_channels(train.images),
        min_per_group=MIN_PER_GROUP,
        n=N,
    )
    top = np.array(bundle.codes.top_of)[json.loads((run / "assignment.json").read_bytes())["code"]]
    labels = np.array(train.labels)
    plain = exported(plain_run(cell, places), places.work / f"{slug(cell.model, cell.set)}_plain")
    return {
        **cell._asdict(),
        "strength": steering.strength,
        "steered_from": steering.steered_from,
        "images": steering.images,
        "n": N,
        "evaluation": of_evaluation(figures.model_dump(mode="json")),
        "group_share_in_top": {g: [float((labels[top == k] == g).mean()) for k in np.unique(top)] for g in groups},
        "step": timed(plain, bundle),
        "cond_bytes_per_row": {
            name: 4
            * sum(int(np.prod([1 if isinstance(s, str) else s for s in spec.shape])) for spec in each.config.cond)
            for name, each in (("plain", plain), ("steered", bundle))
        },
    }


def timed(plain: Bundle, steered: Bundle) -> dict[str, Any]:
    """CPU milliseconds of a call of each denoiser, quartiles over calls in turns; and their ratio, paired."""
    graphs = {"plain": plain, "steered": steered}
    sessions = {name: open_session(bundle.graphs["denoiser"]) for name, bundle in graphs.items()}
    feeds = {name: _feed(session) for name, session in sessions.items()}
    taken: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(ROUNDS):
        for name in list(sessions)[:: 1 if turn % 2 else -1]:
            start = time.process_time()
            sessions[name].run(None, feeds[name])
            taken[name].append(1000 * (time.process_time() - start))
    ratios = [b / a for a, b in zip(taken["plain"], taken["steered"], strict=True)]
    quartiles = {f"{name}_ms": statistics.quantiles(values, n=4) for name, values in taken.items()}
    return {"batch": BATCH, "rounds": ROUNDS, **quartiles, "ratio": statistics.quantiles(ratios, n=4)}


def _feed(session: ort.InferenceSession) -> dict[str, Any]:
    """Normal numbers in the shapes of the digits' graphs: 8x8 latents and 77 tokens, or one where none are read."""
    rng = np.random.default_rng(0)
    sizes = {"batch": BATCH, "height": 8, "width": 8, "tokens": 77}
    found = {}
    for value in session.get_inputs():
        shape = [sizes[side] if isinstance(side, str) else side for side in value.shape]
        found[value.name] = rng.standard_normal(shape, np.float32)
    found["t"] = np.linspace(900, 100, BATCH, dtype=np.float32)
    return found


def run_cells(cells: Sequence[Cell], places: Places, results: Path) -> None:
    """Measure what has no line yet."""
    path = results / "steering.jsonl"
    there = {tuple(line[name] for name in KEY) for line in read(path)}
    judge = Judge.load("digits")
    for cell in cells:
        if tuple(cell) in there:
            continue
        line = measure(cell, places, judge) | {
            "machine": {"system": platform.system(), "machine": platform.machine()},
            "versions": {name: version(name) for name in ("torch", "onnxruntime", "diffusers")},
            "commit": commit(),
        }
        put(path, [line], *KEY)
        print(*cell, "done", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--balance", type=Path, default=Path("runs/balance"), help="what balance.py --work keeps")
    parser.add_argument("--latents", type=Path, default=Path("runs/latent_digits"), help="latent_digits.py --work")
    parser.add_argument("--work", type=Path, default=Path("runs/steering"), help="steered runs and bundles")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of steering.jsonl and its page")
    arguments = parser.parse_args()
    run_cells(CELLS, Places(arguments.balance, arguments.latents, arguments.work), arguments.results)
    print(render.render("steering", arguments.results))


if __name__ == "__main__":
    main()
