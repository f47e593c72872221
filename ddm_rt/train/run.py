"""A training run from images to weights.safetensors: resumable at any moment, and each part written whole."""

import hashlib
import platform
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from safetensors.torch import save

import ddm_rt
from ddm_rt import data
from ddm_rt.bundle import Codes, sha256, write_atomic, write_json
from ddm_rt.config import Frozen, IndicatorMode, RunConfig, parse_json
from ddm_rt.errors import DdmError
from ddm_rt.model.unet import DDM
from ddm_rt.train import device
from ddm_rt.train.codes import describe, discover
from ddm_rt.train.features import Progress, contrastive_features, feature_sets, onnx_features
from ddm_rt.train.loop import Trainer, TrainingSet
from ddm_rt.train.probe import probe, read_labels

SUM_TOLERANCE = 1e-6
Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]


class Interrupted(Exception):
    """Training was asked to stop and left a checkpoint."""

    def __init__(self, run: Path, step: int) -> None:
        self.run, self.step = run, step
        super().__init__(f"stopped at step {step}; the same command resumes it from {run}")


def train(config: RunConfig, out: Path, *, progress: dict[str, Progress] | None = None) -> Path:
    """Train into the run directory `out`, or take up what is there; returns `out`.

    `progress` may hold callbacks "features" and "train". Raises DdmError for bad input or a run made with another
    configuration, Interrupted after SIGINT or SIGTERM (a checkpoint of the last whole step is written).

    It computes on the first CUDA device where torch finds one, else on the CPU; a checkpoint may go on on either.
    """
    progress = progress or {}
    where = device.chosen()
    torch.set_num_threads(config.train.threads)
    with _nothing_left_of_bad_input(out):
        digest = _claim(config, out)
        images = data.load(config.data)
        training_set = _training_set(config, images, out, where, progress.get("features"))
    if (out / "weights.safetensors").is_file():
        return out
    trainer = Trainer(config, training_set, where)
    checkpoints = out / "checkpoints"
    checkpoints.mkdir(exist_ok=True)
    for path in sorted(checkpoints.glob("step_*.safetensors"))[-1:]:
        trainer.load_checkpoint(path, digest)
    with _stop_requests() as stop:
        while trainer.step < config.train.steps:
            loss = trainer.advance()
            stopping = bool(stop)  # read once: a request that comes after the checkpoint waits for the next step
            if trainer.step % config.train.checkpoint_every == 0 or stopping or trainer.step == config.train.steps:
                if not np.isfinite(loss):
                    raise DdmError(f"the loss is {loss} at step {trainer.step}; lower train.learning_rate")
                trainer.save_checkpoint(checkpoints, digest)
            if callback := progress.get("train"):
                callback(trainer.step, config.train.steps, {"loss": loss})
            if stopping and trainer.step < config.train.steps:
                raise Interrupted(out, trainer.step)
    write_json(out / "provenance.json", _provenance(config, images, where))
    write_atomic(out / "weights.safetensors", save(trainer.weights()))
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
    for section, value in left.items():
        if value != right[section]:
            if isinstance(value, dict):
                return next(f"{section}.{k}" for k, v in value.items() if v != right[section].get(k))
            return section
    return "(unknown)"


def _training_set(
    config: RunConfig, images: data.ImageSet, out: Path, where: torch.device, progress: Progress | None
) -> TrainingSet:
    try:
        model = DDM(config.model, config.model.latent_shape(config.data))
    except (TypeError, ValueError) as error:  # diffusers' own checks of its arguments
        raise DdmError(f"model.unet: {error}") from error
    latents = model.encode(torch.from_numpy(images.latent_input()))
    mode = config.train.indicator
    if mode in (IndicatorMode.CODES, IndicatorMode.PROBE):
        codes, assignment = _codes(config, images, out, where, progress)
        return TrainingSet(latents, torch.from_numpy(assignment), codes.num_codes, codes.top_of, _shares(codes))
    write_atomic(out / "codes.json", Codes(origin="none").model_dump_json(indent=1))
    if mode is IndicatorMode.NONE:
        return TrainingSet(latents, None, 0, ())
    if images.labels is None:
        raise DdmError(f"train.indicator is labels, but {config.data.source} has no labels (metadata.csv: label)")
    if "" in images.labels:
        raise DdmError(f"metadata.csv: {images.names[images.labels.index('')]!r} has no label")
    names = sorted(set(images.labels))
    y = torch.tensor([names.index(label) for label in images.labels])
    return TrainingSet(latents, y, len(names), ())


def _codes(
    config: RunConfig, images: data.ImageSet, out: Path, where: torch.device, progress: Progress | None
) -> tuple[Codes, NDArray[np.int64]]:
    """The codes in the run directory, else discovered (or read from `codes.source`) and written there."""
    path, assignment_path = out / "codes.json", out / "assignment.json"
    if path.is_file() and assignment_path.is_file():
        codes = parse_json(Codes, path.read_bytes(), path)
        there = parse_json(GivenCodes, assignment_path.read_bytes(), assignment_path)
        if len(there.code) != len(images):
            raise DdmError(
                f"{assignment_path}: made from {len(there.code)} images; {config.data.source} has {len(images)}"
            )
        return codes, np.array(there.code, np.int64)
    if config.codes.source is not None:
        codes, assignment = read_codes(config.codes.source, images)
    elif config.codes.labels is not None:
        labels = read_labels(config.codes.labels, images)
        found = feature_sets(images.latent_input(), config.features, config.train.seed, progress, where)
        codes, assignment = probe(found, labels, config.train.seed)
    else:
        if config.features.encoder is not None:
            features = onnx_features(images.latent_input(), config.features.encoder)
        else:
            features = contrastive_features(images.latent_input(), config.features, config.train.seed, progress, where)
        codes, assignment = discover(features, config.codes, config.train.seed)
    write_json(assignment_path, {"code": assignment.tolist()})
    write_atomic(path, codes.model_dump_json(indent=1))
    return codes, assignment


class GivenCodes(Frozen):
    """A codes file that someone else made; without `top_code` each code is a top code of its own."""

    code: tuple[Number, ...] = Field(min_length=1)  # of each image
    top_code: tuple[Number, ...] | None = None  # of each code
    share_in_top: tuple[Annotated[float, Field(gt=0, le=1)], ...] | None = None  # of each code; None: by size


def read_codes(path: Path, images: data.ImageSet) -> tuple[Codes, NDArray[np.int64]]:
    """Codes that someone else made: JSON `{"code": [per image], "top_code": [per code], "share_in_top": [per code]}`.

    Raises DdmError when the file doesn't give one code for each image and one top code for each code, or the shares of
    a top code's codes don't sum to 1 (within 1e-6).
    """
    where = f"codes.source {path}"
    try:
        given = parse_json(GivenCodes, path.read_bytes(), where)
    except OSError as error:
        raise DdmError(f"{where}: cannot be read ({error.strerror}); expected a JSON file") from error
    if len(given.code) != len(images):
        raise DdmError(f"{where}: field code has {len(given.code)} entries for {len(images)} images")
    count = len(set(given.code))
    if max(given.code) >= count:
        raise DdmError(f"{where}: field code must use every number from 0 on; there are {count} different ones")
    top_of = given.top_code if given.top_code is not None else tuple(range(count))
    if len(top_of) != count:
        raise DdmError(f"{where}: field top_code has {len(top_of)} entries for {count} codes")
    if max(top_of) >= len(set(top_of)):
        raise DdmError(f"{where}: field top_code must use every number from 0 on")
    assignment = np.array(given.code, np.int64)
    codes = describe(assignment, np.array(top_of, np.int64), origin=f"file:{path.name}")
    if given.share_in_top is not None:
        if len(given.share_in_top) != count:
            raise DdmError(f"{where}: field share_in_top has {len(given.share_in_top)} entries for {count} codes")
        totals = np.bincount(top_of, weights=given.share_in_top)
        if (off := np.abs(totals - 1) > SUM_TOLERANCE).any():
            top = int(off.argmax())
            raise DdmError(f"{where}: field share_in_top sums to {totals[top]:.9g} in top code {top}; expected 1")
        leaves = zip(codes.leaves, given.share_in_top, strict=True)
        codes = codes.model_copy(
            update={"leaves": tuple(leaf.model_copy(update={"share_in_top": share}) for leaf, share in leaves)}
        )
    return codes, assignment


def _shares(codes: Codes) -> tuple[float, ...]:
    """The share of each code in its top code where it isn't just its share of the images, for balanced minibatches."""
    sizes = np.array([leaf.size for leaf in codes.leaves], float)
    by_size = sizes / np.bincount(codes.top_of, weights=sizes)[list(codes.top_of)]
    shares = tuple(leaf.share_in_top for leaf in codes.leaves)
    return () if np.allclose(shares, by_size, rtol=0, atol=SUM_TOLERANCE) else shares


@contextmanager
def _nothing_left_of_bad_input(out: Path) -> Iterator[None]:
    """Input that turns out bad leaves `out` as it was: free for the corrected command."""
    existed = out.exists()
    before = set(out.iterdir()) if out.is_dir() else set()
    try:
        yield
    except (DdmError, OSError):
        for path in set(out.iterdir()) - before if out.is_dir() else ():
            path.unlink()
        if not existed and out.is_dir():
            out.rmdir()
        raise


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
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


def _provenance(config: RunConfig, images: data.ImageSet, where: torch.device) -> dict[str, Any]:
    labels = dict(sorted(Counter(images.labels).items())) if images.labels else None
    digits = data.asset_path()
    return {
        "ddm_rt": ddm_rt.__version__,
        "versions": {name: version(name) for name in ("torch", "diffusers", "numpy", "scikit-learn")},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": device.name(where),
        "preset": config.preset,
        "images": len(images),
        "labels_in_source": labels,  # for the reader; the codes mode never reads them
        "digits_sha256": sha256(digits) if config.data.source.startswith("digits") else None,
    }
