"""A verdict for every shortcut: what precision, caches, fewer steps, an interval of guidance and students do to
balance, quality, diversity and speed, against the teacher's whole walk in fp32 from the same seeds and codes.

    python benchmarks/shortcuts.py --work DIR --set "3v8 4:1" --teacher BUNDLE [--student NAME=BUNDLE ...]
    python benchmarks/shortcuts.py --work DIR --set "3v8 4:1" --teacher BUNDLE [--student NAME=BUNDLE ...] --time
    python benchmarks/shortcuts.py --work DIR --set "faces, gender 4:1, 64 labels" --faces FACES.npz [--student ...]

The first makes the images of each row, n from each of three seeds (`-n`, `--seeds`), and judges them: resumable, one
line for each row and seed. Another n needs a set's name of its own, or its lines take the place of those there. The
second times the rows in interleaved rounds, each in a process of its own. Conversions and caches are made in DIR, on
copies of the bundles. Verdicts are those of `ddm-rt compare`; quality is kept where the whole 90 % interval of the
ratio of Frechet distances lies below 1.05, diversity where those of precision, recall and Vendi score of each group lie
above .95. A cache is found on 96 images of a seed that no row has. `--faces` makes teacher, judge and reference as
`faces.py` does (its row "few-label 64 #0" of gender 4:1), but samples by the bundle's own defaults.

"reused" is a cache without a fit: every second step adds what the call before added to x (`out - x`), as caches of
whole outputs do. "steps" are the sampler's own fewer steps.
"""

import argparse
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import render
from bench_parts.rows import quartiles
from bench_parts.workers import Call, side_by_side
from faces_parts import judging, sets
from faces_parts.cells import Cell
from faces_parts.methods import methods
from measured_steps import commit
from numpy.typing import NDArray
from pages.shortcuts import YARDSTICK
from peers import Configuration
from store import RESULTS, of_balance, put, read
from subjects import Subject

from ddm_rt.bundle import Bundle, copy_bundle
from ddm_rt.config import Precision
from ddm_rt.engine.contract import usable_cores
from ddm_rt.engine.machine import machine
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.kept import Kind, Ratio, decision, ratios
from ddm_rt.evaluate.comparison.paired import paired
from ddm_rt.evaluate.evaluation import LabelledImages, evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import labelled
from ddm_rt.sample.cache.record import Cache, load_all
from ddm_rt.sample.cache.reuse import Reuse
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.schedule import StepTable
from ddm_rt.workflows import cache as caching
from ddm_rt.workflows.export import export

N, SEEDS, FITTED_ON, CALLS, ROUNDS, BATCHES = 5000, (0, 1, 2), 96, (4, 5, 6, 8, 12), 7, (1, 64)
FRECHET_RATIO = 1.05
DIGITS = {"judge": "digits", "groups": "3,8", "reference": "digits:3,8"}  # what --teacher is judged by, if not told
FACES = ("gender 4:1", "few-label 64 #0")  # their set and method of `faces.py`


@dataclass(frozen=True)
class Row:
    """A configuration: whose images, on what, and how they are asked for."""

    name: str
    model: str
    precision: Precision = Precision.FP32
    backend: str = "onnxruntime"
    request: Mapping[str, Any] = field(default_factory=dict)
    timed: bool = True


def rows(students: Sequence[str]) -> list[Row]:
    """All of a set, the yardstick first."""
    found = [Row(YARDSTICK, "teacher")]
    for precision in (Precision.FP32, Precision.BF16, Precision.INT8):
        found.append(Row(f"teacher, OpenVINO {precision}", "teacher", precision, "openvino"))
    for calls in CALLS:
        found.append(Row(f"teacher, fp32, cache of {calls} calls", "teacher", request={"cache": calls}))
    for calls in CALLS:
        request = {"cache": calls}
        found.append(Row(f"teacher, int8, cache of {calls} calls", "teacher", Precision.INT8, "openvino", request))
    found.append(Row("teacher, fp32, reused in every second step", "teacher", request={"cache": "reused"}, timed=False))
    for steps in (12, 8, 5):
        found.append(Row(f"teacher, fp32, {steps} steps", "teacher", request={"num_steps": steps}, timed=False))
    few = {"num_steps": 8, "sampler": "dpm++2m"}
    found.append(Row("teacher, fp32, 8 steps of DPM-Solver++(2M)", "teacher", request=few, timed=False))
    found.append(Row("teacher, fp32, guided in .2 to .8", "teacher", request={"guidance_interval": (0.2, 0.8)}))
    for student in students:
        found.append(Row(f"{student}, fp32", student))
        found.append(Row(f"{student}, int8", student, Precision.INT8, "openvino"))
    return found


def reused(table: StepTable) -> Reuse:
    """Every second step without a call: out = x + (out - x of the step before), and x0 without its clip."""
    last = table.num_steps - 1
    steps = sorted({*range(0, last + 1, 2), last})
    found = []
    for step, following in zip(steps, [*steps[1:], last + 1], strict=True):
        row = np.array([table.c[step], table.d[step], table.e[step], table.g[step]])  # of x, x0, x0_prev, out
        if following > step + 1:
            k, (x, x0, out) = step + 1, np.eye(4)[[0, 1, 3]]
            again = row - x + out
            foreseen = table.a[k] * row + table.b[k] * again
            row = table.c[k] * row + table.d[k] * foreseen + table.e[k] * x0 + table.g[k] * again
        found.append(tuple(row.tolist()))
    return Reuse(steps=tuple(steps), rows=tuple(found))


def bundle_of(model: str, source: Path, precision: Precision, work: Path) -> Bundle:
    """A copy of a model's bundle in a precision, made where it isn't there. Raises DdmError where the folder has
    another model under this name.
    """
    path = work / f"{model}-{precision}"
    own = work / f"{model}-{Precision.FP32}"
    if own.exists() and (kept := Bundle.load(own).bundle_id) != (wanted := Bundle.load(source).bundle_id):
        raise DdmError(
            f"--work {work}: its {model} is bundle {kept[:12]}, and not {wanted[:12]}; expected a folder of its own"
        )
    if not path.exists():
        if precision is Precision.FP32:
            copy_bundle(Bundle.load(source), path)
        else:
            export(str(source), path, precision)
    return Bundle.load(path)


def of_faces(file: Path, work: Path) -> tuple[Path, judging.AttributeJudge, LabelledImages]:
    """Teacher, judge and reference of the faces; what is not in the work folder is made."""
    name, method = FACES
    faces = sets.read(file)
    reference = sets.split(faces, "reference")
    judge = judging.make(sets.split(faces, "judge"), reference, work / "judge.onnx")
    cell = Cell(faces, name, methods()[method], work)

    def progress(done: int, total: int, figures: dict[str, float]) -> None:
        if done % 100 == 0:
            print(f"{name} {method}: {done}/{total}", flush=True)

    bundle = cell.fit(progress)
    labels = [cell.what.groups[label] for label in reference.labels(cell.what.attribute)]
    of_attribute = judging.AttributeJudge(judge, cell.what.attribute)
    return bundle.path, of_attribute, LabelledImages(reference.images, labels)


def asked(row: Row, bundle: Bundle, prompts: Sequence[str], threads: int) -> dict[str, Any]:
    """Fields of the row's request; its cache is found and recorded in the bundle where it isn't there."""
    request = dict(row.request) | ({"prompt": list(prompts)} if prompts else {})
    calls = request.get("cache")
    if calls == "reused":
        request["cache"] = reused(Request(**request | {"cache": None}).resolve(bundle).table)
    elif calls is not None and calls not in [
        cache.calls for cache in load_all(bundle).values() if isinstance(cache, Cache)
    ]:
        settings = Request(**request | {"cache": None}, seed=max(SEEDS) + 1)
        unjudged: dict[str, Any] = {"judge": None, "groups": (), "reference": "none", "margin": 0.03}
        unjudged |= {"frechet_ratio": FRECHET_RATIO, "n": N, "fitted_on": FITTED_ON, "request": settings}
        for _ in caching.find(str(bundle.path), [calls], backend=row.backend, threads=threads, **unjudged):
            pass
    return request


class Bench:
    """One set: its judge, its real images, and the images of each row."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.set, self.work, self.threads, self.n = arguments.set, arguments.work, arguments.threads, arguments.n
        self.judge: Any
        if arguments.faces:
            teacher, self.judge, reference = of_faces(arguments.faces, self.work)
            self.groups = list(self.judge.classes)
        else:
            teacher, self.judge, self.groups = (
                arguments.teacher,
                Judge.load(arguments.judge),
                arguments.groups.split(","),
            )
            reference = labelled(arguments.reference, "reference", Bundle.load(teacher).training.run.data)
        self.models = {"teacher": teacher, **dict(arguments.student)}
        for model, source in self.models.items():
            bundle_of(model, source, Precision.FP32, self.work)  # or the folder's images are another model's
        self.reference = reference.balanced(self.groups)
        self.real, self.labels = self.judge.predict(self.reference.images).features, np.array(self.reference.labels)
        self.prompts = arguments.prompt or []

    def images(self, row: Row, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images uint8 [n,H,W,3] and codes of a row, kept in the work folder."""
        path = self.work / "images" / f"{row.name.replace(' ', '_').replace(',', '')}_{seed}_{self.n}.npz"
        if not path.exists():
            bundle = bundle_of(row.model, self.models[row.model], row.precision, self.work)
            request = asked(row, bundle, self.prompts, self.threads)
            made = Pipeline.load(Bundle.load(bundle.path), row.backend, self.threads).generate(
                n=self.n, seed=seed, **request
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            half = path.with_suffix(".half.npz")
            np.savez_compressed(half, images=made.images, codes=np.array(made.codes, np.int64))
            half.replace(path)
        with np.load(path) as kept:
            return kept["images"], kept["codes"]

    def judged(self, row: Row, seed: int) -> dict[str, Any]:
        """What a row's line holds of one seed."""
        images, codes = self.images(row, seed)
        whole, whole_codes = self.images(rows(())[0], seed)
        verdicts = self.judge.predict(whole), self.judge.predict(images)
        figures = evaluate(images, codes, self.judge, self.groups, self.reference)
        found: dict[str, Any] = {
            "n": self.n,
            "balance": of_balance(figures.raw.model_dump(mode="json")),
            "neither": figures.neither.share if set(self.judge.classes) - set(self.groups) else None,
            "frechet": figures.quality.frechet,
        }
        if row.name != YARDSTICK:
            if not np.array_equal(codes, whole_codes):
                raise SystemExit(f"{row.name}: its codes aren't the teacher's; it can't be compared pair by pair")
            shares = paired(verdicts[0].labels, verdicts[1].labels, self.groups)
            kept = ratios(verdicts, codes.tolist(), self.real, self.labels, self.groups, FRECHET_RATIO)
            found["drift"] = shares.model_dump(mode="json", include={"decision", "changes"})
            found["quality"], found["diversity"] = (_verdict(kept, kind) for kind in ("quality", "diversity"))
        return found


def _verdict(kept: Sequence[Ratio], kind: Kind) -> dict[str, Any]:
    every = [each for each in kept if each.kind == kind]
    shown = [[each.figure, each.group, each.ratio, *each.interval, each.decision] for each in every]
    return {"decision": decision(kept, kind), "figures": shown}


def configuration(row: Row, prompt: Mapping[str, Any]) -> Configuration:
    """What a row is timed as."""
    options = {"backend": row.backend, "precision": row.precision.value, **row.request, **prompt}
    return Configuration(row.name, "ours", options)


def timed(bench: Bench, found: Sequence[Row], rounds: int) -> dict[str, dict[str, Any]]:
    """Images a second of each row by batch size, medians and quartiles."""
    subjects = {}
    for model, source in bench.models.items():
        precisions = {Precision.FP32, *(row.precision for row in found if row.model == model)}
        paths = {each: str(bundle_of(model, source, each, bench.work).path) for each in precisions}
        converted = {each.value: path for each, path in paths.items() if each is not Precision.FP32}
        subjects[model] = Subject(name=model, bundle=paths[Precision.FP32], converted=converted)
    prompt = {"prompt": list(bench.prompts)} if bench.prompts else {}
    configurations = [(configuration(row, prompt), subjects[row.model]) for row in found]
    rates: dict[str, dict[str, Any]] = {row.name: {} for row in found}
    for batch in BATCHES:
        for each in side_by_side(configurations, bench.threads, Call("images", batch), rounds):
            rates[each.configuration.name][str(batch)] = quartiles([1000 * batch / ms for ms in each.samples_ms])
            print(f"batch {batch}: {each.configuration.name}", flush=True)
    return rates


def _student(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise argparse.ArgumentTypeError(f"{text}: expected NAME=BUNDLE")
    return name, Path(path)


def run(arguments: argparse.Namespace) -> None:
    """Judge or time what is missing of a set."""
    bench, path = Bench(arguments), arguments.results / "shortcuts.jsonl"
    wanted = arguments.only or ""
    found = [row for row in rows(list(bench.models)[1:]) if wanted in row.name or row.name == YARDSTICK]
    stamp = {"commit": commit(), "machine": machine().model_dump(), "threads": arguments.threads}
    key = ("set", "row", "seed")
    if arguments.time:
        for name, rates in timed(bench, [row for row in found if row.timed], arguments.rounds).items():
            line = {"set": bench.set, "row": name, "seed": "time", "images_per_s": rates, "rounds": arguments.rounds}
            put(path, [line | stamp], *key)
    else:
        there = {(line["set"], line["row"], line["seed"]) for line in read(path) if line.get("n") == arguments.n}
        for seed, row in itertools.product(arguments.seeds, found):
            if (bench.set, row.name, seed) in there:
                continue
            line = {"set": bench.set, "row": row.name, "seed": seed, **bench.judged(row, seed), **stamp}
            put(path, [line], *key)
            said = [line.get(what, {}).get("decision") for what in ("drift", "quality", "diversity")]
            print(f"{bench.set} {row.name}, seed {seed}: {said}", flush=True)
    print(render.render("shortcuts", arguments.results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps bundles and images of this set")
    parser.add_argument("--set", required=True, help="its name in the table")
    teacher = parser.add_mutually_exclusive_group(required=True)
    teacher.add_argument("--teacher", type=Path, help="bundle of fp32")
    teacher.add_argument("--faces", type=Path, metavar="FACES.npz", help="the file of faces, as `faces.py` takes it")
    parser.add_argument("--student", action="append", default=[], metavar="NAME=BUNDLE", type=_student)
    for name, usual in DIGITS.items():
        parser.add_argument(f"--{name}", help=f"with --teacher; by default {usual}")
    parser.add_argument("--prompt", action="append", help="of a model that takes prompts; several take turns")
    parser.add_argument("-n", type=int, default=N)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", help="rows whose name holds this, beside the yardstick")
    parser.add_argument("--time", action="store_true", help="time the rows; make no images")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of shortcuts.jsonl and shortcuts.md")
    arguments = parser.parse_args()
    for name, usual in DIGITS.items():
        if arguments.faces and getattr(arguments, name) is not None:
            parser.error(f"--{name}: --faces has its own")
        if getattr(arguments, name) is None:
            setattr(arguments, name, usual)
    try:
        run(arguments)
    except DdmError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
