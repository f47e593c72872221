"""`ddm-rt export`: a run or a bundle as a bundle of some precision, with the calibration set that int8 and fp8 need."""

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import INDEX, SHIPPED, Bundle
from ddm_rt.config import Balance, Family, Precision, RunConfig
from ddm_rt.engine import backends
from ddm_rt.engine.composed import Composed
from ddm_rt.engine.contract import Array, Cond, Engine, usable_cores
from ddm_rt.errors import DdmError
from ddm_rt.export.precision.convert import CALIBRATED, Calibration, check_convertible, convert
from ddm_rt.export.tiles import check_size, check_tile, tile_decoder
from ddm_rt.files import check_free
from ddm_rt.progress import OnStage
from ddm_rt.sample.pipeline import Pipeline


@dataclass(frozen=True)
class Effort:
    """What calls to calibrate with cost: trajectories of so many images, and of one of four as many again with the null
    code, each of so many steps (None: as many as the bundle takes), of which `kept` are recorded.
    """

    images: int
    steps: int | None
    kept: int
    all_cores: bool  # whether passes are so long that all cores compute one; how many they are is in the provenance


# A pass of Stable Diffusion takes seconds on a CPU: 50 passes there, recorded and then measured, take ten minutes.
PIXELS, LATENTS = Effort(64, None, 8, all_cores=False), Effort(4, 5, 5, all_cores=True)
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
    decoder_tile: int | None = None,
    calibration_images: int | None = None,
    progress: OnStage | None = None,
) -> Bundle:
    """A finished run, or a bundle (directory or shipped name), as the bundle directory `out` in `precision`.

    Raises DdmError for options that don't go together, and as `export_run`, `calibrate`, `convert` and `tile_decoder`.
    """
    check_free(out)
    steps: list[Callable[[str, Path], Bundle]] = []
    # All that can be refused is, before minutes are spent on a step.
    if _is_bundle(source):
        if plugin or precompute_kv or decoder is not None:
            raise DdmError(
                f"{source} is a bundle; --plugin, --precompute-kv and --decoder need the run that it was made from"
            )
        if precision is Precision.FP32 and decoder_tile is None:
            raise DdmError(
                f"{source} is a bundle already; give a run, or the --precision to convert it to, or a --decoder-tile"
            )
        bundle = Bundle.load(source)
        if precision is not Precision.FP32:
            check_convertible(bundle, precision)
        if decoder_tile is not None:
            check_tile(bundle, decoder_tile, source)
    else:
        # These need torch, which converting a bundle doesn't.
        from ddm_rt.export.run import export_run
        from ddm_rt.model.assemble import read_file

        model = read_file(RunConfig, Path(source) / "config.json").model
        if decoder_tile is not None:
            check_size(model.family, model.patch, decoder_tile, source)
        traced = partial(export_run, plugin=plugin, precompute_kv=precompute_kv, decoder=decoder, progress=progress)
        steps.append(lambda run, path: traced(Path(run), path))
    if precision is not Precision.FP32:
        steps.append(lambda path, out: _convert(Bundle.load(path), out, precision, calibration_images, progress))
    if decoder_tile is not None:
        steps.append(lambda path, out: tile_decoder(Bundle.load(path), out, decoder_tile))
    if len(steps) == 1:
        return steps[0](source, out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        for number, step in enumerate(steps[:-1]):
            source = str(step(source, Path(folder) / str(number)).path)
        return steps[-1](source, out)


def calibrate(bundle: Bundle, images: int | None = None, seed: int = _SEED) -> Calibration:
    """Denoiser calls along trajectories of `bundle` with its default sampler: deterministic, on ONNX Runtime.

    The codes of `images` images are drawn by quota, so every mode of the data has its share however rare it is, both
    branches of guidance being recorded; a fourth as many more images have the null code throughout. Of each trajectory
    some evenly spaced steps are kept: see `Effort`. Raises DdmError for fewer than 1 image.
    """
    effort = PIXELS if bundle.config.family is Family.PIXEL else LATENTS
    images = effort.images if images is None else images
    if images < 1:
        raise DdmError(f"calibration images: {images}; expected at least 1")
    threads = usable_cores() if effort.all_cores else 1
    recorder = _Recorder(backends.load(bundle, "onnxruntime", threads=threads, device="cpu"))
    pipeline = Pipeline(bundle, recorder)
    buckets = pipeline.buckets  # tried out on noise, which is not to be recorded
    sampling = bundle.config.sampling
    steps = min(effort.steps or sampling.num_steps, sampling.num_steps)
    kept = {round(step) for step in np.linspace(0, steps - 1, min(effort.kept, steps))}
    counts: Counter[int] = Counter()
    for number, balance in ((images, Balance.AUTO), (-(-images // 4), Balance.OFF)):
        recorder.recording = 0 in kept

        def on_step(done: int, total: int) -> None:
            recorder.recording = done % steps in kept

        generation = pipeline.generate(n=number, seed=seed, balance=balance, num_steps=steps, on_step=on_step)
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
            **({"threads": threads} if effort.all_cores else {}),
            "seed": seed,
            "buckets": list(buckets),
            "range": "largest magnitude",
        },
        threads,
    )


def _convert(bundle: Bundle, out: Path, precision: Precision, images: int | None, progress: OnStage | None) -> Bundle:
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

    def images(self, x0: Array) -> NDArray[np.uint8]:
        """Black: nobody looks at them, and a VAE takes as long as some passes."""
        return np.zeros((len(x0), 1, 1, 3), np.uint8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)
