"""Splits of clothes: is the split that a person means among the first six candidates, and is it balanced once accepted?

    python benchmarks/splits.py FOLDER            # twelve sets, one thread; resumable
    python benchmarks/splits.py FOLDER --splits   # the candidates alone, without diffusion

FOLDER holds Fashion-MNIST as Debian's package dataset-fashion-mnist has it (`dpkg -L` says where): six pairs of
classes at 4:1 and 1:4, 1,000 images each. The rule of `ddm-rt discover` was developed on these sets and no others. The
classes are withheld from it. They stand in for the person: the candidate with the best balanced accuracy of the first
six is accepted where that is at least .90. Else nobody would accept one, nothing is trained, and the set is a miss. The
judge has seen other images.
"""

import argparse
import gzip
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import render
import torch
from measured_steps import commit
from numpy.typing import NDArray
from PIL import Image
from store import RESULTS, of_evaluation, put, read

from ddm_rt import data
from ddm_rt.files import write_json
from ddm_rt.presets import resolve
from ddm_rt.train.factors.candidates import FIRST

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
PAIRS = ((0, 2), (0, 4), (2, 8), (4, 6), (5, 7), (6, 8))
RATIOS = {"4:1": (800, 200), "1:4": (200, 800)}
SETS = {f"{CLASSES[a]}, {CLASSES[b]} {ratio}": (a, b, ratio) for a, b in PAIRS for ratio in RATIOS}
HIT = 0.9  # balanced accuracy that counts as found
N, SEED, MIN_PER_GROUP = 1000, 0, 200
JUDGE_FROM = 30_000  # training images from here on are the judge's; no set reaches so far
STEPS = 1200

Labels = NDArray[np.int64]


def images_of(folder: Path, part: str) -> tuple[NDArray[np.uint8], Labels]:
    """Images uint8 [N,32,32,1] and classes int64 [N] of `part`, train or t10k."""
    pixels = np.frombuffer(gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return np.pad(pixels.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2)))[..., None], labels.astype(np.int64)


def write_set(name: str, source: Path, work: Path) -> tuple[Path, Labels]:
    """The set as a folder of PNG files, in the data's order, and which images are of its second class."""
    first, second, ratio = SETS[name]
    images, labels = images_of(source, "train")
    index = np.sort(
        np.concatenate([np.flatnonzero(labels == k)[:n] for k, n in zip((first, second), RATIOS[ratio], strict=True)])
    )
    folder = work / "data"
    if not (folder / f"{len(index) - 1:05d}.png").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images[index]):
            Image.fromarray(image[..., 0]).save(folder / f"{i:05d}.png")
    return folder, (labels[index] == second).astype(np.int64)


def balanced_accuracy(label: Labels, truth: Labels) -> float:
    """Of the best way to give each side one of the two classes."""
    sides = np.arange(label.max() + 1)
    table = np.array([[(label[truth == k] == side).mean() for side in sides] for k in (0, 1)])  # [2, sides]
    return float(np.maximum(table[0], table[1]).sum() / 2)


def find_splits(name: str, source: Path, work: Path) -> dict[str, Any]:
    """The line of the candidates; writes factors.json with the best of the first six accepted, where it is a hit."""
    from ddm_rt.train.factors import record
    from ddm_rt.train.factors.candidates import find_candidates
    from ddm_rt.train.factors.views import views

    folder, truth = write_set(name, source, work)
    config = resolve("digits-bench", {"data.source": str(folder)})
    images = data.load(config.data)
    if not (work / "views.npz").is_file():
        np.savez(work / "views.npz", **views(images.latent_input(), config.features, SEED))  # type: ignore[arg-type]
    with np.load(work / "views.npz") as arrays:
        seen = dict(arrays)
    candidates = find_candidates(seen, config.codes, SEED)
    accuracy = [balanced_accuracy(candidate.label, truth) for candidate in candidates]
    best = int(np.argmax(accuracy[:FIRST]))
    found = record.FactorsFile(
        data=config.data,
        names_sha256=record.names_sha256(images.names),
        seed=SEED,
        factors=record.described(candidates, SEED),
    )
    first, second, _ = SETS[name]
    if accuracy[best] >= HIT:
        major = int(truth[candidates[best].label == 0].mean() > 0.5)
        values = tuple(CLASSES[(first, second)[k]] for k in (major, 1 - major))
        found = record.accept(found, [best + 1], {best + 1: ("kind", values)})
    write_json(work / record.FACTORS, found.model_dump(mode="json"))
    alone = config.codes.model_copy(update={"bootstraps": 0})
    by_view = {view: find_candidates({view: features}, alone, SEED)[:FIRST] for view, features in seen.items()}
    return {
        "study": "splits",
        "set": name,
        "images": len(truth),
        "accuracy": accuracy,
        "views": [candidate.view for candidate in candidates],
        "agreement": [candidate.agreement for candidate in candidates],
        "stability": [candidate.stability for candidate in candidates],
        "sizes": [list(candidate.sizes) for candidate in candidates],
        "by_view": {view: [balanced_accuracy(each.label, truth) for each in found] for view, found in by_view.items()},
    }


def judge_of(source: Path, path: Path) -> Any:
    """A classifier of all ten classes, on images that no generator sees."""
    from ddm_rt.evaluate.judge import Judge

    if not path.is_file():
        from ddm_rt.export.classifier import export_classifier
        from ddm_rt.train.judge import confusion, fit

        images, labels = images_of(source, "train")
        x = data.to_model(images[JUDGE_FROM:])
        judge = fit(x, labels[JUDGE_FROM:], seed=SEED, steps=2500)
        held_out, truth = images_of(source, "t10k")
        counts = confusion(judge, data.to_model(held_out), truth)
        about = {"images": len(x), "held_out": len(truth), "steps": 2500, "seed": SEED}
        metadata = {"classes": list(CLASSES), "confusion": counts.tolist(), "training": about}
        export_classifier(judge, x.shape[1:], path, {key: json.dumps(value) for key, value in metadata.items()})
    return Judge.load(path)


def diffuse(name: str, source: Path, work: Path, judge: Any) -> dict[str, Any]:
    """Train on the accepted candidate, sample, and measure."""
    from ddm_rt.bundle import Bundle
    from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
    from ddm_rt.evaluate.run import three_channels
    from ddm_rt.export.run import export_run
    from ddm_rt.sample.pipeline import Pipeline
    from ddm_rt.train.run import train

    fields = {"data.source": str(work / "data"), "codes.source": str(work / "factors.json"), "train.steps": STEPS}
    train(resolve("digits-bench", fields), work / "run", progress={"train": _log(name)})
    if not (work / "bundle").is_dir():
        export_run(work / "run", work / "bundle")
    made = Pipeline.load(Bundle.load(work / "bundle"), backend="onnxruntime", threads=1).generate(n=N, seed=SEED)
    first, second, _ = SETS[name]
    held_out, truth = images_of(source, "t10k")
    keep = (truth == first) | (truth == second)
    real = LabelledImages(three_channels(held_out[keep]), [CLASSES[k] for k in truth[keep]])
    figures = evaluate(
        made.images,
        np.array(made.codes, np.int64),
        judge,
        (CLASSES[first], CLASSES[second]),
        real,
        min_per_group=MIN_PER_GROUP,
    )
    return of_evaluation(figures.model_dump(mode="json")) | {"pair": _of_the_pair(made.images, judge, first, second)}


def _of_the_pair(images: NDArray[np.uint8], judge: Any, first: int, second: int) -> dict[str, Any]:
    """The share of the first class where the judge may only choose between the two, and how much of real images of each
    it knows among all ten: it takes 40 of 100 real shirts for another garment.
    """
    probabilities = judge.predict(images).probabilities
    counts = np.array(judge.confusion)
    known = [float(counts[k, k] / counts[k].sum()) for k in (first, second)]
    return {"share": float((probabilities[:, first] > probabilities[:, second]).mean()), "known": known}


def _log(name: str) -> Any:
    def callback(done: int, total: int, figures: dict[str, float]) -> None:
        if done % 200 == 0:
            print(f"{name}: {done}/{total} {figures}", flush=True)

    return callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path("runs/splits"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--splits", action="store_true", help="the candidates alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    path = arguments.results / "splits.jsonl"
    for name in SETS:
        work = arguments.work / name.replace(", ", "_").replace(" ", "_").replace(":", "to")
        line = next((line for line in read(path) if line["set"] == name), None)
        if line is None:
            line = find_splits(name, arguments.images, work) | {"machine": platform.machine(), "commit": commit()}
            put(path, [line], "study", "set")
            print(name, np.round(line["accuracy"][:FIRST], 2), flush=True)
    for name in () if arguments.splits else SETS:
        work = arguments.work / name.replace(", ", "_").replace(" ", "_").replace(":", "to")
        line = next(line for line in read(path) if line["set"] == name)
        if max(line["accuracy"][:FIRST]) < HIT or "pair" in line.get("evaluation", ()):
            continue
        if not (work / "factors.json").is_file():
            find_splits(name, arguments.images, work)
        judge = judge_of(arguments.images, arguments.work / "judge.onnx")
        line |= {"evaluation": diffuse(name, arguments.images, work, judge), "commit": commit()}
        put(path, [line], "study", "set")
        print(name, line["evaluation"]["raw"]["scores"], flush=True)
    print(render.render("splits", arguments.results))


if __name__ == "__main__":
    main()
