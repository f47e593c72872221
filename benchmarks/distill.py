"""Does a student of four steps keep its teacher's balance and quality? And two steps, one, or the teacher's first step?

    python benchmarks/distill.py                # everything that is missing, one set after the other; resumable
    python benchmarks/distill.py --development  # the development set in place of the table's
    python benchmarks/distill.py --table        # the table of what is there

The teacher is the run `codes` of `balance.py` with its preset and seed, trained again here since weights aren't
committed. The settings of the student of four steps are the defaults of `ddm-rt distill`. All but one were chosen on
the development set (7v8 4:1), before any image of the table's sets was made; `distill.one_step_start` came after a
student without it had failed on 0v1 (results/distill.md has it all). One run each.

Rows: the teacher as it samples by default (25 steps, two branches); the teacher in 4; students made for 4, 2 and 1; and
"teacher first": the first of the four steps is the teacher's, with guidance, the others are the student's. That needs
two bundles for one image, while an image's bytes are a function of one bundle id: so it is here and no option.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import balance
import numpy as np
from numpy.typing import NDArray

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.evaluation import evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.run import labelled, three_channels
from ddm_rt.files import write_atomic, write_json
from ddm_rt.sample.loop.together import sample
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.schedule import StepTable

DEVELOPMENT, SETS = ("7v8 4:1",), ("3v8 4:1", "0v1 4:1")
N, SEED, MIN_PER_GROUP, MAX_REQUESTS, AT_ONCE = balance.N, balance.SEED, balance.MIN_PER_GROUP, 20, 64
ROWS: dict[str, tuple[str, int | None]] = {  # who makes the images, and in how many steps
    "teacher, 25 steps": ("teacher", None),
    "teacher, 4 steps": ("teacher", 4),
    "student, 4 steps": ("student", None),
    "teacher first, then student": ("both", 4),
    "student, 2 steps": ("student of 2", None),
    "student, 1 step": ("student of 1", None),
}
STUDENTS: dict[str, dict[str, Any]] = {  # no bar hangs on the last two: half of the budget
    "student": {"distill.phases": 4},
    "student of 2": {"distill.phases": 2, "train.steps": 4000},
    "student of 1": {"distill.phases": 1, "train.steps": 4000},
}
BARS = {"fd": 0.06, "fd_off": 0.03, "frechet": 1.15, "smallest": 1.25}
RESULTS = Path(__file__).parent / "results" / "distill.json"


def run_set(name: str, work: Path, tree: dict[str, Any], results: Path) -> None:
    """Train, distil and measure what `tree` lacks of a set, row by row."""
    rows = tree.setdefault(name, {})
    pipelines: dict[str, Pipeline] = {}
    judge = Judge.load("digits")
    for label, (who, steps) in ROWS.items():
        if label in rows:
            continue
        for needed in ("teacher", *(("student",) if who == "both" else (who,))):
            if needed not in pipelines:
                pipelines[needed] = pipeline_of(name, needed, work)
        images, codes = generate(pipelines, who, steps, judge, name.split()[0].split("v"))
        rows[label] = measure(pipelines["teacher"].bundle, images, codes, judge, name)
        rows[label]["settings"] = pipelines["teacher" if who == "both" else who].bundle.training.run.model_dump(
            mode="json", include={"train", "distill", "sampling"}
        )
        rows[label]["commit"] = balance._commit()
        write_json(results, tree)
        print(f"{name} {label}: {figures(rows[label], name)}", flush=True)


def pipeline_of(name: str, who: str, work: Path) -> Pipeline:
    """The teacher of a set or one of its students, made where it isn't there."""
    from ddm_rt.export.run import export_run
    from ddm_rt.train.distill.run import distill

    folder = work / balance.result_path(name, "codes").stem
    balance.train_cell(name, "codes", work)
    run = folder / "run"
    if who != "teacher":
        teacher, run = run, folder / f"student-{STUDENTS[who]['distill.phases']}"
        log = {part: balance._log(f"{name} {who}, {part}") for part in ("paths", "train")}
        distill(teacher, run, STUDENTS[who], progress=log)
    bundle = run.with_name(f"{run.name}-bundle")
    if not bundle.exists():
        export_run(run, bundle)
    return Pipeline.load(bundle, "onnxruntime", threads=1)


def generate(
    pipelines: dict[str, Pipeline], who: str, steps: int | None, judge: Judge, groups: list[str]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """N images, and requests of N more until each group has MIN_PER_GROUP by the judge."""
    images: list[NDArray[np.uint8]] = []
    codes: list[NDArray[np.int64]] = []
    counts = np.zeros(len(groups), int)
    while len(images) < MAX_REQUESTS and (not images or counts.min() < MIN_PER_GROUP):
        if who == "both":
            made = teacher_first(pipelines["teacher"], pipelines["student"], SEED + len(images))
        else:
            found = pipelines[who].generate(n=N, seed=SEED + len(images), num_steps=steps)
            made = found.images, np.array(found.codes)
        images.append(made[0])
        codes.append(made[1])
        labels = judge.predict(made[0]).labels
        counts += [int((labels == group).sum()) for group in groups]
    return np.concatenate(images), np.concatenate(codes)


def teacher_first(teacher: Pipeline, student: Pipeline, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """N images whose first step is the teacher's, with its guidance, and whose others are the student's."""
    images = []
    with (
        student.prepare(n=N, seed=seed) as asked,
        teacher.prepare(n=N, seed=seed, codes=[image.code for image in asked.manifest.images]) as guided,
    ):
        for start in range(0, N, AT_ONCE):
            members = np.arange(start, min(start + AT_ONCE, N))
            x = student.first_states(asked, members)
            for pipeline, request, part in (
                (teacher, guided, piece(asked.table, slice(0, 1))),
                (student, asked, piece(asked.table, slice(1, None))),
            ):
                needed = [request.jobs[i].branches for i in members]
                conditions = zip(*(each.conditions for each in needed), strict=True)
                x = sample(
                    pipeline.engine,
                    part,
                    np.asarray(x),
                    [pipeline._conditions.gather(branch, 1.0, request.size) for branch in conditions],
                    np.array([each.scales for each in needed], np.float32),
                    np.array([request.jobs[i].seed for i in members], np.uint64),
                    buckets=pipeline.buckets,
                )
            images.append(student.decode(x, len(members), asked.shape))
        codes = np.array([image.code for image in asked.manifest.images])
    return np.concatenate(images), codes


def piece(table: StepTable, rows: slice) -> StepTable:
    """These rows of a table without noise or memory, which don't care for their number."""
    if table.f.any() or table.e.any():
        raise ValueError("a row of this table depends on its place")
    columns = {name: getattr(table, name)[rows] for name in "tabcdegf"}
    columns |= {name: getattr(table, name)[rows] for name in ("clip_min", "clip_max")}
    return replace(table, num_steps=len(columns["t"]), **columns)


def measure(
    bundle: Bundle, images: NDArray[np.uint8], codes: NDArray[np.int64], judge: Judge, name: str
) -> dict[str, Any]:
    config, groups = bundle.training.run.data, name.split()[0].split("v")
    found = evaluate(
        images,
        codes,
        judge,
        groups,
        labelled(f"digits:{','.join(groups)}", "reference", config),
        three_channels(data.load(config).images),
        min_per_group=MIN_PER_GROUP,
        n=N,
    )
    return {"evaluation": found.model_dump(mode="json"), "vendi": vendi(judge.predict(images[:N]).features)}


def vendi(features: NDArray[Any]) -> float:
    """Friedman and Dieng 2023 (arXiv 2210.02410), eq. 1, cosine similarity: how many unlike images there seem to be."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit.T @ unit / len(unit))  # those of the kernel matrix, but for zeros
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def figures(row: dict[str, Any], name: str) -> dict[str, float]:
    found = row["evaluation"]
    quality = found["per_group"][balance._minority(name)]["quality"]
    low, high = found["raw"]["fd_ddm_interval"]
    return {
        "fd": found["raw"]["scores"]["fd_ddm"],
        "low": low,
        "high": high,
        "frechet": found["quality"]["frechet"],
        "smallest": float("nan") if quality is None else quality["frechet"],
        "neither": found["neither"]["share"],
        "recall": found["quality"]["recall"],
        "vendi": row["vendi"],
    }


def table(tree: dict[str, Any]) -> str:
    """Markdown: one row per set and way of sampling, then the bars."""
    columns = ("set", "sampling", "FD_ddm [95 %]", "Frechet, all", "smallest group", "neither", "recall", "Vendi")
    lines = ["| " + " | ".join(columns) + " |", "| " + " | ".join(["---"] * len(columns)) + " |"]
    bars = []
    for name, rows in tree.items():
        found = {label: figures(rows[label], name) for label in ROWS if label in rows}
        for label, f in found.items():
            lines.append(
                f"| {name} | {label} | {f['fd']:.3f} [{f['low']:.3f}, {f['high']:.3f}] | {f['frechet']:.1f} | "
                f"{f['smallest']:.1f} | {f['neither']:.1%} | {f['recall']:.3f} | {f['vendi']:.2f} |"
            )
        teacher, student = (found.get(label) for label in ("teacher, 25 steps", "student, 4 steps"))
        if teacher and student:
            ratios = [student[key] / teacher[key] for key in ("frechet", "smallest")]
            kept = (
                student["fd"] <= BARS["fd"],
                abs(student["fd"] - teacher["fd"]) <= BARS["fd_off"],
                ratios[0] <= BARS["frechet"],
                ratios[1] <= BARS["smallest"],
            )
            words = ["met" if bar else "MISSED" for bar in kept]
            bars.append(
                f"- {name}, 4 steps: FD_ddm {student['fd']:.3f} (bar .06: {words[0]}), "
                f"{student['fd'] - teacher['fd']:+.3f} to the teacher (.03: {words[1]}); Frechet distance "
                f"{ratios[0]:.2f}x (1.15x: {words[2]}), smallest group {ratios[1]:.2f}x (1.25x: {words[3]})"
            )
    return "\n".join([*lines, "", *bars]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/distill"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--development", action="store_true")
    parser.add_argument("--table", action="store_true", help="only print the table of what is there")
    arguments = parser.parse_args()
    tree = json.loads(arguments.results.read_bytes()) if arguments.results.is_file() else {}
    if not arguments.table:
        for name in DEVELOPMENT if arguments.development else SETS:
            run_set(name, arguments.work, tree, arguments.results)
    text = table(tree)
    write_atomic(arguments.results.with_suffix(".table.md"), text)
    print(text)


if __name__ == "__main__":
    main()
