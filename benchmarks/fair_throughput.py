"""Fair throughput: images per second of every configuration, and whether what it makes is balanced and good enough.

    python benchmarks/fair_throughput.py --work DIR --teacher RUN --authors RUN [--student NAME=RUN ...] --gates
    python benchmarks/fair_throughput.py --work DIR --teacher RUN --authors RUN [--student NAME=RUN ...]

The first makes n images of each configuration and judges them; what is there for the same bundle and settings is kept.
The second times all of them, each in a process of its own, round by round, at several batch sizes. Gates: FD_ddm at
most .06, and a Frechet distance of at most 1.15 times that of the teacher's 25 guided steps in fp32 on ONNX Runtime;
beside them, the drift gate (`ddm-rt compare`) against that teacher on the same seeds and codes.

RUN is what `ddm-rt train` (teacher: codes; authors: labels) or `ddm-rt distill` (students) left, on the set named by
--groups. The authors' way is diffusers in eager torch, 40 steps, both branches of guidance in each, as their pipeline
always computes them; digits take no text, so its two branches are the same, and the row below it has one branch alone.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers
import render
from bench_parts.rows import quartiles
from bench_parts.workers import Call, side_by_side
from measured_steps import commit
from numpy.typing import NDArray
from peers import Configuration
from registry import BENCHMARKS
from run import check_tests
from store import RESULTS, Line, load, of_balance, save
from subjects import Subject, of_bundle

from ddm_rt.bundle import Bundle
from ddm_rt.config import DataConfig, Precision
from ddm_rt.engine.contract import usable_cores
from ddm_rt.engine.gates import MAX_FD, MAX_FRECHET_RATIO
from ddm_rt.engine.machine import machine
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.paired import paired
from ddm_rt.evaluate.evaluation import evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import labelled
from ddm_rt.files import write_json

N, SEED, MIN_PER_GROUP, BATCHES, ROUNDS = 1000, 0, 400, (1, 16, 32, 64), 7
AUTHORS, REFERENCE = "authors' way", "teacher, onnxruntime"
_LADDER = [  # each adds one idea to the one before it; then the students
    AUTHORS,
    "teacher, diffusers",
    REFERENCE,
    "teacher, openvino",
    "teacher, openvino bf16",
    "teacher, openvino int8",
    "teacher, openvino int8, 8 steps",
]
_CHUNK = 100  # images of one call for the gates

# Backends and precisions that each model is run with.
_OURS: dict[str, dict[str, Any]] = {
    "onnxruntime": {"backend": "onnxruntime"},
    "openvino": {"backend": "openvino"},
    "openvino bf16": {"backend": "openvino", "precision": "bf16"},
    "openvino int8": {"backend": "openvino", "precision": "int8"},
}
_FEWER = {"8 steps": {"num_steps": 8, "sampler": "dpm++2m"}, "4 steps": {"num_steps": 4}}


@dataclass(frozen=True)
class Entry:
    """A configuration and the model that it runs."""

    configuration: Configuration
    subject: Subject
    what: str  # of it, in words

    @property
    def name(self) -> str:
        return self.configuration.name


def entries(teacher: Subject, authors: Subject, students: Mapping[str, Subject]) -> list[Entry]:
    """Every row of the table, the baseline first."""
    forty: dict[str, Any] = {"num_steps": 40}
    found = [
        Entry(Configuration(AUTHORS, "eager", forty), authors, "diffusers eager, 40 steps, guidance"),
        Entry(
            Configuration("authors' way, one branch", "eager", forty | {"guided": False}),
            authors,
            "diffusers eager, 40 steps",
        ),
        Entry(Configuration("teacher, diffusers", "eager"), teacher, "diffusers eager, 25 steps, guidance"),
    ]
    for name, options in _OURS.items():
        found.append(_ours(f"teacher, {name}", teacher, options, "25 steps, guidance"))
    for fewer, request in _FEWER.items():
        found.append(_ours(f"teacher, openvino int8, {fewer}", teacher, _OURS["openvino int8"] | request, fewer))
    for student, subject in students.items():
        steps = Bundle.load(subject.bundle, verify=False).config.sampling.num_steps
        what = f"{steps} step{'s' * (steps > 1)}"
        found += [_ours(f"{student}, {name}", subject, options, what) for name, options in _OURS.items()]
    return found


def _ours(name: str, subject: Subject, options: dict[str, Any], what: str) -> Entry:
    return Entry(Configuration(name, "ours", options), subject, what)


def subject_of(name: str, run: Path, work: Path) -> Subject:
    """A run's bundle with weights, and its conversions, made in `work` where they aren't there."""
    from ddm_rt.export.run import export_run

    bundle = work / name / "bundle"
    if not bundle.exists():
        export_run(run, bundle)
    return of_bundle(name, bundle, work / name, () if name == "authors" else (Precision.BF16, Precision.INT8))


def images_of(entry: Entry, n: int, threads: int) -> tuple[NDArray[np.uint8], NDArray[np.int64] | None]:
    """n images uint8 [n,H,W,3] and their codes, None where the configuration takes none."""
    if entry.configuration.peer == "ours":
        from ddm_rt.engine import backends
        from ddm_rt.sample.pipeline import Pipeline

        options = dict(entry.configuration.options)
        bundle = Bundle.load(entry.subject.of(options.pop("precision", "fp32")), verify=False)
        pipeline = Pipeline(bundle, backends.load(bundle, options.pop("backend"), threads))
        made = pipeline.generate(n=n, seed=SEED, **options)
        return made.images, np.array(made.codes, np.int64)
    peer = peers.load(entry.configuration.peer, entry.subject, threads, entry.configuration.options)
    call = peer.images(min(n, _CHUNK))
    made_floats = np.concatenate([call() for _ in range(-(-n // _CHUNK))])[:n]
    levels = np.rint((np.clip(made_floats, -1, 1) + 1) * np.float32(127.5)).astype(np.uint8)
    return np.broadcast_to(levels.transpose(0, 2, 3, 1), (*levels.shape[:1], *levels.shape[2:], 3)), None


def judged(
    images: NDArray[np.uint8], codes: NDArray[np.int64] | None, judge: Judge, groups: list[str], data: DataConfig
) -> dict[str, Any]:
    """The figures that gates are about, of images uint8 [n,H,W,3]."""
    reference = labelled(f"digits:{','.join(groups)}", "reference", data)
    found = evaluate(images, codes, judge, groups, reference, None, min_per_group=MIN_PER_GROUP, n=len(images))
    return {
        "fd": found.raw.scores.fd_ddm,
        "balance": of_balance(found.raw.model_dump(mode="json")),
        "neither": found.neither.share,
        "frechet": found.quality.frechet,
    }


def gates(rows: list[Entry], record: Line, groups: list[str], n: int, threads: int, work: Path, results: Path) -> None:
    """What the record lacks: images of each configuration, judged, beside the teacher's on the same seeds and codes.

    The teacher's own labels and codes, image by image, are kept in `work`.
    """
    judge, per_image = Judge.load("digits"), work / "reference.json"
    there = {row["configuration"]: row for row in record["rows"]}
    reference: tuple[NDArray[np.str_], NDArray[np.int64]] | None = None
    for entry in sorted(rows, key=lambda entry: entry.name != REFERENCE):
        bundle = Bundle.load(entry.subject.of(entry.configuration.options.get("precision", "fp32")), verify=False)
        key = json.loads(json.dumps([bundle.bundle_id, entry.configuration.options, n, SEED, groups, judge.sha256]))
        kept = there.get(entry.name)
        if kept is not None and kept["key"] == key and (entry.name != REFERENCE or per_image.is_file()):
            if entry.name == REFERENCE:
                images = json.loads(per_image.read_bytes())
                reference = np.array(images["labels"]), np.array(images["codes"], np.int64)
            continue
        images, codes = images_of(entry, n, threads)
        labels = judge.predict(images).labels
        figures: dict[str, Any] = {"configuration": entry.name, "key": key, "what": entry.what}
        figures |= {"precision": entry.configuration.precision}
        figures |= judged(images, codes, judge, groups, bundle.training.run.data)
        if entry.name == REFERENCE:
            assert codes is not None
            reference = labels, codes
            write_json(per_image, {"labels": labels.tolist(), "codes": codes.tolist()})
        elif reference is not None and codes is not None and np.array_equal(codes, reference[1]):
            drift = paired(reference[0], labels, groups)
            figures["drift"] = drift.model_dump(
                mode="json", include={"categories", "table", "flip_interval", "decision"}
            )
        figures["commit"] = commit()
        there[entry.name] = figures
        save("fair throughput", record | {"rows": list(there.values())}, results)
        print(f"{entry.name}: FD {figures['fd']:.3f}, Frechet {figures['frechet']}", flush=True)


def timed(rows: list[Entry], batches: list[int], rounds: int, threads: int) -> dict[str, Any]:
    """Per configuration and batch size: images per second, and how many times the authors' way at its best batch."""
    samples: dict[str, dict[int, list[float]]] = {entry.name: {} for entry in rows}
    memory: dict[str, float] = {}
    for batch in batches:
        done = side_by_side([(e.configuration, e.subject) for e in rows], threads, Call("images", batch), rounds)
        for each in done:
            name = each.configuration.name
            samples[name][batch] = [1000 * batch / value for value in each.samples_ms]
            memory[name] = max(memory.get(name, 0.0), each.peak_mem_mib)
            print(f"batch {batch}: {name} {statistics.median(samples[name][batch]):.3g} images/s", flush=True)
    return {
        name: {
            "images_per_s": {str(batch): quartiles(rates) for batch, rates in by_batch.items()},
            "best_batch": max(by_batch, key=lambda batch: statistics.median(by_batch[batch])),
            "peak_mem_mib": memory[name],
        }
        for name, by_batch in samples.items()
    }


def passes(figures: Mapping[str, Any], reference: Mapping[str, Any]) -> bool:
    """Both gates, on the point estimates."""
    return bool(figures["fd"] <= MAX_FD and figures["frechet"] <= MAX_FRECHET_RATIO * reference["frechet"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="keeps bundles")
    parser.add_argument("--teacher", type=Path, required=True, help="run with codes")
    parser.add_argument("--authors", type=Path, required=True, help="run of the paper's objective (--indicator labels)")
    parser.add_argument("--student", action="append", default=[], metavar="NAME=RUN")
    parser.add_argument("--groups", default="3,8")
    parser.add_argument("--gates", action="store_true", help="make and judge images; time nothing")
    parser.add_argument("-n", type=int, default=N)
    parser.add_argument("--batch", default=",".join(map(str, BATCHES)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of fair_throughput.jsonl and its pages")
    arguments = parser.parse_args()
    students = dict(text.partition("=")[::2] for text in arguments.student)
    try:
        subjects = {name: subject_of(name, Path(run), arguments.work) for name, run in students.items()}
        teacher = subject_of("teacher", arguments.teacher, arguments.work)
        rows = entries(teacher, subject_of("authors", arguments.authors, arguments.work), subjects)
        record: Line = load("fair throughput", arguments.results) or {"rows": []}
        if arguments.gates:
            groups = arguments.groups.split(",")
            gates(rows, record, groups, arguments.n, arguments.threads, arguments.work, arguments.results)
            return 0
        judgements = {row["configuration"]: row for row in record["rows"]}
        if missing := [entry.name for entry in rows if entry.name not in judgements]:
            raise DdmError(f"{missing[0]}: not judged yet; run with --gates first")
        check_tests(BENCHMARKS["step"].tests)
        stamp = machine().model_dump()
        speeds = timed(rows, [int(part) for part in arguments.batch.split(",")], arguments.rounds, arguments.threads)
    except DdmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = []
    for entry in rows:
        row = judgements[entry.name]
        made.append(row | speeds[entry.name] | {"passes": passes(row, judgements[REFERENCE])})
    record |= {
        "command": "python benchmarks/fair_throughput.py --work DIR --teacher RUN --authors RUN --student NAME=RUN",
        "n": arguments.n,
        "seed": SEED,
        "groups": arguments.groups.split(","),
        "rounds": arguments.rounds,
        "threads": arguments.threads,
        "machine": stamp,
        "commit": commit(),
        "baseline": AUTHORS,
        "reference": REFERENCE,
        "ladder": _LADDER + [f"{name}, openvino int8" for name in students],
        "rows": made,
    }
    save("fair throughput", record, arguments.results)
    print(render.render("fair_throughput", arguments.results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
