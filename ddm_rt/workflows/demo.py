"""`ddm-rt demo`: biased digits -> three models -> bundles -> figures -> one page. Resumable: what is there is kept."""

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ddm_rt
from ddm_rt import data
from ddm_rt.bundle import INDEX, Bundle
from ddm_rt.config import DataConfig, RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.judge import Judge
from ddm_rt.evaluate.report.evaluation_page import MethodResult, Report, write
from ddm_rt.evaluate.run import Yardstick, code_cards, measure
from ddm_rt.presets import PRESETS, resolve
from ddm_rt.progress import OnStep

PRESET = "digits-demo"
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("Ours: codes, no labels", {"train.indicator": "codes"}),
    "vanilla": ("Vanilla diffusion", {"train.indicator": "none"}),
    "paper": (
        "Paper mode: DDM's objective, true labels, α = .05",
        {"train.indicator": "labels", "train.indicator_weight": 0.05},
    ),
}
N, SEED, MIN_PER_GROUP = 500, 0, 64
LIMITATIONS = (
    "The models here are trained for minutes. Pictures are rougher and distances larger than with a real budget; "
    "compare the methods with each other, not with other work.",
    f"Per-group quality uses {MIN_PER_GROUP} images per group here, 400 in the published table.",
    "DDM as published is run with true labels, as its authors' code does. In our runs its loss did not move the shares "
    "towards balance; it is shown as it comes out.",
)


def demo(
    out: Path,
    source: str,
    steps: int | None = None,
    *,
    tell: Callable[[str], None] = lambda text: None,
    progress: Callable[[str], OnStep] = lambda name: lambda done, total: None,
) -> tuple[Path, list[MethodResult]]:
    """Train, export, sample and judge three models on `source`; returns the page in `out` and the figures behind it.

    `tell` is called with a line of text at each stage, `progress` with the name of what begins, for a callback that
    follows its steps. Raises DdmError for an unfit `source`, an `out` of other settings, or where a training fails.
    """
    from ddm_rt.export.run import export_run  # what isn't installed shows before anything is made

    started = time.monotonic()
    labels = data.load(DataConfig(source=source)).labels or ()
    groups = sorted(set(labels))
    if not source.startswith("digits") or len(groups) != 2:
        raise DdmError(f"--data {source!r}: the demo takes two classes of the shipped digits, e.g. digits:3,8@4:1")
    steps = PRESETS[PRESET].train.steps if steps is None else steps
    configs = {
        name: resolve(PRESET, {"data.source": source, "train.steps": steps} | fields)
        for name, (_, fields) in METHODS.items()
    }
    for name, config in configs.items():
        _check_same(out / name / "run" / "config.json", config)
    counts = ", ".join(f"{labels.count(group)} of {group}" for group in groups)
    tell(
        f"training images: {counts}\nbudget: {len(METHODS)} models, {steps} steps of "
        f"{PRESETS[PRESET].train.batch_size} images each, one thread each, {_workers()} side by side"
    )
    by = Yardstick(Judge.load("digits"), groups, f"digits:{','.join(groups)}", source, N, SEED, MIN_PER_GROUP)
    results = []
    for name in _trained(out, configs, progress):
        label, bundle = METHODS[name][0], out / name / "bundle"
        if not (bundle / INDEX).is_file():
            tell(f"{name}: exporting")
            export_run(out / name / "run", bundle)
        tell(f"{name}: sampling {N} images, and more until each group has {MIN_PER_GROUP}; judging")
        figures, grid = measure(bundle, by, progress(f"sampling {name}"))
        results.append(MethodResult(name, label, figures, grid))
    results.sort(key=lambda result: ("vanilla", "paper", "ours").index(result.name))
    ours = Bundle.load(out / "ours" / "bundle")
    provenance = {
        "ddm_rt": ddm_rt.__version__,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "versions": ours.index.provenance.get("versions", {}),
        "data": source,
        "training images": counts,
        "training steps": steps,
        "seed": SEED,
        "images per method": N,
        "command": f"ddm-rt demo --data {source} --steps {steps}",
        "minutes": round((time.monotonic() - started) / 60, 1),
    }
    report = out / "report"
    if report.exists():
        shutil.rmtree(report)
    stability = ours.training.discovery.stability_ari
    page = write(
        Report(f"ddm_rt demo: {source}", results, code_cards(ours), stability, provenance, LIMITATIONS), report
    )
    return page, results


def _workers() -> int:
    return max(1, min(len(METHODS), os.cpu_count() or 1))


def _check_same(path: Path, config: RunConfig) -> None:
    """A run that was made with other settings must not pass for one of this demo's."""
    if path.is_file() and parse_json(RunConfig, path.read_bytes(), path) != config:
        raise DdmError(
            f"{path}: made with other settings (steps, data, version) than this demo's; choose another --out"
        )


def _trained(out: Path, configs: dict[str, RunConfig], progress: Callable[[str], OnStep]) -> Iterator[str]:
    """The models' names, each when it is trained: as many training processes run side by side as there are CPUs, and
    they go on while the caller works.
    """
    there = [name for name in METHODS if (out / name / "run" / "weights.safetensors").is_file()]
    ready, waiting = list(there), [name for name in METHODS if name not in there]
    updates = {name: progress(f"training {name}") for name in waiting}
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while ready or waiting or running:
            for name, process in list(running.items()):
                log, total = out / name / "train.log", configs[name].train.steps
                if process.poll() is None:
                    updates[name](_step(log), total)
                    continue
                del running[name]
                if process.returncode:
                    tail = log.read_text(errors="replace").strip().splitlines()[-1:]
                    raise DdmError(f"training {name} failed: {' '.join(tail)} ({log})")
                updates[name](total, total)
                ready.append(name)
            while waiting and len(running) < _workers():
                name = waiting.pop(0)
                running[name] = _start(out / name, configs[name], METHODS[name][1])
            if ready:
                yield ready.pop(0)
            else:
                time.sleep(0.5)
    finally:
        for process in running.values():
            process.terminate()


def _start(folder: Path, config: RunConfig, fields: dict[str, Any]) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "ddm_rt.cli", "train", "--preset", PRESET, "--data", config.data.source]
    command += ["--steps", str(config.train.steps), "--out", str(folder / "run"), "--log-steps"]
    command += [part for field, value in fields.items() for part in ("--set", f"{field}={value}")]
    with (folder / "train.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def _step(log: Path) -> int:
    """The last step that the log tells of."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("step ")]
    return int(lines[-1].split()[1]) if lines else 0
