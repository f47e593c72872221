"""Does a student of a few steps keep its teacher's balance, quality and diversity?

    python benchmarks/distill.py                # everything that is missing, one set after the other; resumable
    python benchmarks/distill.py --development  # the development set in place of the table's

The teacher is the run `codes` of `balance.py` with its preset and seed, trained again here since weights aren't
committed. One run each.

Rows: the teacher as it samples by default (25 steps, two branches), and in 4 steps. "Adversarial" students have the
defaults of `ddm-rt distill`. They were chosen on 7v8 4:1, and how the discriminator compares pairs on 7v8 and 1v7 4:1,
after an earlier recipe had been judged on the sets of the table (results/distill.md). The others learn their teacher's
paths by regression (`--set distill.adversarial=false`). Their settings were chosen on 7v8 4:1 too, all but one:
`distill.one_step_start` came after a student without it had failed on 0v1 (results/distill.md has it all). "Teacher
first": the first of the four steps is the teacher's, with guidance, the others are the student's. That needs two
bundles for one image, while an image's bytes are a function of one bundle id: so it is here and no option.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import balance
import numpy as np
import render
from measured_steps import commit
from numpy.typing import NDArray
from store import RESULTS, of_evaluation, put, read

from ddm_rt import data
from ddm_rt.bundle import Bundle
from ddm_rt.evaluate.evaluation import evaluate
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.quality import vendi
from ddm_rt.evaluate.run import labelled, three_channels
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.sample.request import Request
from ddm_rt.schedule import StepTable

DEVELOPMENT, SETS = ("7v8 4:1",), ("3v8 4:1", "0v1 4:1", "3v8 1:4", "0v1 1:4")
BY_REGRESSION = ("3v8 4:1", "0v1 4:1")  # sets that have the rows of those students
N, SEED, MIN_PER_GROUP, MAX_REQUESTS, AT_ONCE = balance.N, balance.SEED, balance.MIN_PER_GROUP, 20, 64
ROWS: dict[str, tuple[str, int | None]] = {  # who makes the images, and in how many steps
    "teacher, 25 steps": ("teacher", None),
    "teacher, 4 steps": ("teacher", 4),
    "student, 4 steps": ("student", None),
    "teacher first, then student": ("both", 4),
    "student, 2 steps": ("student of 2", None),
    "student, 1 step": ("student of 1", None),
    "adversarial student, 4 steps": ("adversarial of 4", None),
    "adversarial student, 2 steps": ("adversarial of 2", None),
    "adversarial student, 1 step": ("adversarial of 1", None),
}
_REGRESSION = {"distill.adversarial": False}
STUDENTS: dict[str, dict[str, Any]] = {
    "student": _REGRESSION | {"distill.phases": 4},
    # No bar hangs on these two: half of the budget.
    "student of 2": _REGRESSION | {"distill.phases": 2, "train.steps": 4000},
    "student of 1": _REGRESSION | {"distill.phases": 1, "train.steps": 4000},
    **{f"adversarial of {steps}": {"distill.phases": steps} for steps in (4, 2, 1)},
}
# Of the students by regression that are made here; "many steps": an earlier one, which failed on 0v1.
FIRST_PHASE, NO_PATHS = "one guided step", "adversarial"
KEPT = {  # of the settings
    "train": {"steps", "batch_size", "learning_rate", "ema_decay", "seed"},
    "sampling": {"sampler", "num_steps", "indicator_guidance_scale"},
    "distill": True,
}


def run_set(name: str, work: Path, results: Path) -> None:
    """Train, distil and measure what is missing of a set, row by row."""
    path, key = results / "distill.jsonl", ("set", "sampling", "first_phase")
    there = [tuple(line[part] for part in key) for line in read(path)]
    pipelines: dict[str, Pipeline] = {}
    judge = Judge.load("digits")
    for label, (who, steps) in ROWS.items():
        phase = NO_PATHS if who.startswith("adversarial") else FIRST_PHASE
        for_every_set = phase == NO_PATHS or (who, steps) == ("teacher", None)
        if (name, label, phase) in there or not (for_every_set or name in BY_REGRESSION):
            continue
        for needed in ("teacher", *(("student",) if who == "both" else (who,))):
            if needed not in pipelines:
                pipelines[needed] = pipeline_of(name, needed, work)
        images, codes = generate(pipelines, who, steps, judge, name.split()[0].split("v"))
        settings = pipelines["teacher" if who == "both" else who].bundle.training.run
        line = {
            "set": name,
            "sampling": label,
            "first_phase": phase,
            "seed": SEED,
            **measure(pipelines["teacher"].bundle, images, codes, judge, name),
            "settings": settings.model_dump(mode="json", include=KEPT, exclude_none=True),
            "commit": commit(),
        }
        put(path, [line], *key)
        print(f"{name} {label}: done", flush=True)


def pipeline_of(name: str, who: str, work: Path) -> Pipeline:
    """The teacher of a set or one of its students, made where it isn't there."""
    from ddm_rt.export.run import export_run
    from ddm_rt.train.distill.run import distill

    folder = work / balance.slug(name, "codes")
    balance.train_cell(name, "codes", work)
    run = folder / "run"
    if who != "teacher":
        kind = who.partition(" ")[0]
        teacher, run = run, folder / f"{kind}-{STUDENTS[who]['distill.phases']}"
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
        student.prepare(Request(n=N, seed=seed)) as asked,
        teacher.prepare(Request(n=N, seed=seed, codes=[image.code for image in asked.manifest.images])) as guided,
    ):
        for start in range(0, N, AT_ONCE):
            members = np.arange(start, min(start + AT_ONCE, N))
            x = student.first_states(asked, members)
            for pipeline, request, part in (
                (teacher, guided, piece(asked.table, slice(0, 1))),
                (student, asked, piece(asked.table, slice(1, None))),
            ):
                slots = pipeline.slots(request.shape)
                slots.admit(part, np.asarray(x), [request.jobs[i] for i in members])
                for _ in range(part.num_steps):
                    _, x = slots.tick()
            images.append(student.decode(x, len(members), student.batch_sizes(asked.shape)))
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
    return {
        "evaluation": of_evaluation(found.model_dump(mode="json")),
        "vendi": vendi(judge.predict(images[:N]).features),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/distill"), help="runs and bundles (not committed)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of distill.jsonl and its table")
    parser.add_argument("--development", action="store_true")
    arguments = parser.parse_args()
    for name in DEVELOPMENT if arguments.development else SETS:
        run_set(name, arguments.work, arguments.results)
    print(render.render("distill", arguments.results))


if __name__ == "__main__":
    main()
