"""`ddm-rt export`: a run or a bundle as a bundle of some precision, with the calibration set that int8 and fp8 need."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import INDEX, SHIPPED, Bundle
from ddm_rt.config import Balance, Precision
from ddm_rt.engine import backends
from ddm_rt.engine.composed import Composed
from ddm_rt.engine.contract import Array, Cond, Engine
from ddm_rt.errors import DdmError
from ddm_rt.export.precision.convert import CALIBRATED, Calibration, convert
from ddm_rt.files import check_free
from ddm_rt.progress import OnStage
from ddm_rt.sample.pipeline import Pipeline

# Trajectories of this many images, and one of four as many again with the null code; calls at this many of their steps.
IMAGES, STEPS = 64, 8
_SEED = 0
_NOT_RECORDED = {"num_steps", "eta", "guidance_scale", "indicator_scale", "clip"}  # of the sampling's defaults


def export(
    source: str,
    out: Path,
    precision: Precision,
    *,
    plugin: bool = False,
    precompute_kv: bool = False,
    decoder: Path | None = None,
    calibration_images: int = IMAGES,
    progress: OnStage | None = None,
) -> Bundle:
    """A finished run, or an fp32 bundle (directory or shipped name), as the bundle directory `out` in `precision`.

    Raises DdmError for options that don't go together, and as `export_run`, `calibrate` and `convert`.
    """
    check_free(out)
    if _is_bundle(source):
        if plugin or precompute_kv or decoder is not None:
            raise DdmError(
                f"{source} is a bundle; --plugin, --precompute-kv and --decoder need the run that it was made from"
            )
        if precision is Precision.FP32:
            raise DdmError(f"{source} is a bundle already; give a run, or the --precision to convert it to")
        return _convert(Bundle.load(source), out, precision, calibration_images, progress)

    from ddm_rt.export.run import export_run  # needs torch, which converting a bundle doesn't

    exported = partial(
        export_run, Path(source), plugin=plugin, precompute_kv=precompute_kv, decoder=decoder, progress=progress
    )
    if precision is Precision.FP32:
        return exported(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        bundle = exported(Path(folder) / "fp32")
        return _convert(bundle, out, precision, calibration_images, progress)


def calibrate(bundle: Bundle, images: int = IMAGES, seed: int = _SEED) -> Calibration:
    """Denoiser calls along trajectories of `bundle` with its default sampler: deterministic, on ONNX Runtime.

    The codes of `images` images are drawn by quota, so every mode of the data has its share however rare it is, both
    branches of guidance being recorded; a fourth as many more images have the null code throughout. Of each trajectory
    `STEPS` evenly spaced steps are kept. Raises DdmError for fewer than 1 image.
    """
    if images < 1:
        raise DdmError(f"calibration images: {images}; expected at least 1")
    recorder = _Recorder(backends.load(bundle, "onnxruntime", threads=1, device="cpu"))
    pipeline = Pipeline(bundle, recorder)
    buckets = pipeline.buckets  # tried out on noise, which is not to be recorded
    sampling = bundle.config.sampling
    steps = sampling.num_steps
    kept = {round(step) for step in np.linspace(0, steps - 1, min(STEPS, steps))}
    counts: Counter[int] = Counter()
    for number, balance in ((images, Balance.AUTO), (-(-images // 4), Balance.OFF)):
        recorder.recording = 0 in kept

        def on_step(done: int, total: int) -> None:
            recorder.recording = done % steps in kept

        generation = pipeline.generate(n=number, seed=seed, balance=balance, on_step=on_step)
        recorder.recording = False
        counts.update(generation.codes)
    return Calibration(
        recorder.calls,
        {
            "images_per_code": {str(code): counts[code] for code in sorted(counts)},  # -1: the null code
            "calls": len(recorder.calls),
            "rows": sum(len(call["t"]) for call in recorder.calls),
            "steps": sorted(kept),
            "num_steps": steps,
            **sampling.model_dump(mode="json", exclude=_NOT_RECORDED),
            "seed": seed,
            "buckets": list(buckets),
            "range": "largest magnitude",
        },
    )


def _convert(bundle: Bundle, out: Path, precision: Precision, images: int, progress: OnStage | None) -> Bundle:
    calibration = None
    if precision in CALIBRATED:
        if progress is not None:
            progress(0, 1, "calibrating")
        calibration = calibrate(bundle, images)
    return convert(bundle, out, precision, calibration=calibration, progress=progress)


def _is_bundle(source: str) -> bool:
    return (Path(source) / INDEX).is_file() or (source in SHIPPED and not Path(source).exists())


class _Recorder(Composed):
    """An engine that keeps the inputs of its denoiser while `recording`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.recording = False
        self.calls: list[Mapping[str, NDArray[Any]]] = []

    def denoiser(self, x_t: Array, t: Array, cond: Cond) -> Array:
        if self.recording:
            # `cond` is the same at every step, and arrays are never written into: ready keys and values are large.
            self.calls.append({"x_t": np.array(x_t), "t": np.array(t), **cond})
        return self._engine.denoiser(x_t, t, cond)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
