"""A training run from images to weights.safetensors: resumable at any moment, and each part written whole."""

import hashlib
import os
import platform
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

import ddm_rt
from ddm_rt import data
from ddm_rt.config import Family, Precision, RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.files import asset, sha256, write_atomic, write_json
from ddm_rt.model.assemble import WEIGHTS
from ddm_rt.progress import OnFigures
from ddm_rt.train.distributed import Processes, connect, device_name
from ddm_rt.train.loop import Trainer
from ddm_rt.train.pixels import prepare_pixels
from ddm_rt.train.preview import write_sheet
from ddm_rt.train.trainee import Material


class Interrupted(Exception):
    """Training was asked to stop and left a checkpoint."""

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step
        super().__init__(f"stopped at step {step}; the same command resumes it from {run}")


def train(
    config: RunConfig, out: Path, *, progress: Mapping[str, OnFigures] | None = None, grid_every: int | None = None
) -> Path:
    """Train into the run directory `out`, or take up what is there; returns `out`.

    Every `grid_every` steps and after the last, a sheet of samples goes into the folder samples.

    `progress` may hold callbacks "reading", "features", "encoding" and "train". Raises DdmError for bad input or a run
    made with another configuration, Interrupted after SIGINT or SIGTERM (a checkpoint of the last whole step is
    written).

    It computes on the first CUDA device where torch finds one, else on the CPU; a checkpoint may go on on either, in
    the precision of the configuration.
    Processes that were launched together (`accelerate launch`) share each step.
    """
    return carry_out(config, out, partial(prepare, config, out), Trainer, progress, grid_every)


def carry_out(
    config: RunConfig,
    out: Path,
    prepared: Callable[[torch.device, Mapping[str, OnFigures]], Material],
    kind: type[Trainer],
    progress: Mapping[str, OnFigures] | None,
    grid_every: int | None,
) -> Path:
    """As `train`: a run of a trainer of this `kind` on the material that `prepared` makes in `out`."""
    processes = connect()
    images = config.train.batch_size * config.train.accumulate
    processes.part(images, kind.TOGETHER)  # raises where it has none, before anything is written
    progress = progress if progress is not None and processes.main else {}
    torch.set_num_threads(config.train.threads)
    with _nothing_left_of_bad_input(out) if processes.main else nullcontext():
        digest = processes.main_first(lambda: _claim(config, out))
        if (out / WEIGHTS).is_file():
            return out
        material = processes.main_first(lambda: prepared(processes.device, progress))
    trainer = kind(config, material, processes)
    processes.main_first(lambda: trainer.get_ready(out, progress))
    return _fit(trainer, out, digest, progress, grid_every)


def device_fields(out: Path, device: torch.device, *, pixels: bool = False) -> dict[str, Any]:
    """What a new run in `out` computes in where its command doesn't say: on a CUDA device bf16, and for a checkpoint
    compiled, where torch can. Models of pixels take less time in all than compiling.

    A run that was begun keeps what it has, wherever it goes on. So its configuration says what made its weights.
    Raises DdmError for a config.json that isn't one.
    """
    path = out / "config.json"
    if path.is_file():
        there = parse_json(RunConfig, path.read_bytes(), path).train
        return {"train.precision": there.precision, "train.compile": there.compile}
    if device.type != "cuda":
        return {}
    found: dict[str, Any] = {}
    if torch.cuda.is_bf16_supported(including_emulation=False):
        found["train.precision"] = Precision.BF16
    if not pixels and _can_compile():
        found["train.compile"] = True
    return found


def _can_compile() -> bool:
    """Whether torch.compile has what it needs for a CUDA device: triton, which needs a C compiler."""
    compilers = (os.environ.get("CC"), "gcc", "clang")
    return find_spec("triton") is not None and any(shutil.which(name) for name in compilers if name)


def prepare(config: RunConfig, out: Path, device: torch.device, progress: Mapping[str, OnFigures]) -> Material:
    """Read the images and find their classes; of a checkpoint, encode images and prompts.

    What is found is kept in the run directory `out`, and taken from there when it is. Raises DdmError for bad input,
    before anything costly where that can be told.
    """
    if config.model.family is Family.PIXEL:
        return prepare_pixels(config, out, device, progress)
    from ddm_rt.train.checkpoint.prepare import prepare_checkpoint  # with transformers, which pixels don't need

    return prepare_checkpoint(config, out, device, progress)


def _fit(trainer: Trainer, out: Path, digest: str, progress: Mapping[str, OnFigures], grid_every: int | None) -> Path:
    """Take the trainer from its newest checkpoint in `out` to its last step, and write what a finished run has."""
    config, processes = trainer.config, trainer.processes
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for path in sorted(checkpoints.glob("step_*.safetensors"))[-1:]:
        trainer.load_checkpoint(path, digest)
    with stop_requests() as stop:
        while trainer.step < config.train.steps:
            loss = trainer.advance()
            # Read once: a request that comes after the checkpoint waits for the next step.
            stopping = processes.any(bool(stop))
            last = trainer.step == config.train.steps
            if trainer.step % config.train.checkpoint_every == 0 or stopping or last:
                if not np.isfinite(loss):
                    raise DdmError(f"the loss is {loss} at step {trainer.step}; lower train.learning_rate")
                if processes.main:
                    trainer.save_checkpoint(checkpoints, digest)
            if callback := progress.get("train"):
                callback(trainer.step, config.train.steps, {"loss": loss})
            if grid_every and processes.main and (trainer.step % grid_every == 0 or last):
                write_sheet(trainer, out / "samples")
            if stopping and not last:
                raise Interrupted(out, trainer.step)
    if processes.main:
        write_json(out / "provenance.json", _provenance(config, trainer.material, processes))
        write_atomic(out / WEIGHTS, save(trainer.weights()))
        trainer.material.clear()
    return out


def _claim(config: RunConfig, out: Path) -> str:
    """Write config.json, or check that the run there was made with the same one; returns its digest."""
    text = config.model_dump_json(indent=1)
    path = out / "config.json"
    if path.is_file():
        there = parse_json(RunConfig, path.read_bytes(), path)
        if there != config:
            raise DdmError(
                f"{path}: field {_first_difference(there, config)} differs from this command; choose another --out"
            )
    elif out.exists() and (not out.is_dir() or any(not f.name.startswith(f".{path.name}.") for f in out.iterdir())):
        # A draft of config.json is what a run leaves that was killed in its first moment.
        raise DdmError(f"{out} exists and is not a run; choose another --out")
    else:
        write_atomic(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def _first_difference(a: RunConfig, b: RunConfig) -> str:
    left, right = a.model_dump(mode="json"), b.model_dump(mode="json")
    for section in left | right:
        value, other = left.get(section), right.get(section)
        if value != other:
            if isinstance(value, dict) and isinstance(other, dict):
                return next(f"{section}.{k}" for k, v in value.items() if v != other.get(k))
            return section
    return "(unknown)"


@contextmanager
def _nothing_left_of_bad_input(out: Path) -> Iterator[None]:
    """Input that turns out bad leaves `out` as it was: free for the corrected command."""
    existed = out.exists()
    before = set(out.iterdir()) if out.is_dir() else set()
    try:
        yield
    except (DdmError, OSError):
        for path in set(out.iterdir()) - before if out.is_dir() else ():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if not existed and out.is_dir():
            out.rmdir()
        raise


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that becomes non-empty on SIGINT or SIGTERM; the step in progress is finished first."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt  # a second request doesn't wait
        seen.append(number)

    try:
        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: signals are the caller's
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _provenance(config: RunConfig, material: Material, processes: Processes) -> dict[str, Any]:
    labels = dict(sorted(Counter(material.labels).items())) if material.labels else None
    digits = asset(data.DIGITS_FILE)
    packages = ["torch", "diffusers", "numpy", "scikit-learn"]
    if config.base is not None:
        packages += ["transformers", "peft"]
    return {
        "ddm_rt": ddm_rt.__version__,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device_name(processes.device),
        "processes": processes.count,
        "preset": config.preset,
        "images": len(material.latents),
        "image_encoder": material.encoder,
        "labels_in_source": labels,  # for the reader; the codes mode never reads them
        "digits_sha256": sha256(digits) if config.data.source.startswith("digits") else None,
    }
