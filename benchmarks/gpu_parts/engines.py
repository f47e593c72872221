"""The shipped digits on each TensorRT flavour and on ONNX Runtime's CUDA provider, against ONNX Runtime on the CPU."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from gpu_parts.machine import has
from gpu_parts.record import Record
from gpu_parts.rig import Rig
from gpu_parts.shapes import THROUGHPUT_BATCHES
from gpu_parts.timing import quantiles

FLAVOURS = ("tensorrt", "tensorrt-rtx")
IMAGES = 16
BUILD_S = 40.0  # of the section's budget, that a build may use


def section_engines(record: Record, rig: Rig) -> None:
    """Builds where they are possible, then images of the same seeds, and images per second."""
    if absent := [name for name in ("onnxruntime", "pydantic") if not has(name)]:
        record.leave_out(f"everything: not installed: {', '.join(absent)} (ONNX Runtime's images are the yardstick)")
        return
    from ddm_rt.bundle import Bundle
    from ddm_rt.files import asset
    from ddm_rt.sample.pipeline import Pipeline

    if record.rows:  # of a process that was cut off: all of it is quick beside the builds, which come last
        record.rows.clear()
    bundle = Bundle.load(asset("digits"))
    expected = Pipeline.load(bundle, backend="onnxruntime", threads=1, device="cpu").generate(n=IMAGES, seed=0).images
    onnxruntime_cuda(record, bundle, expected)
    for backend in FLAVOURS:
        if (reason := cannot_build(backend)) is not None:
            record.leave_out(f"{backend}: {reason}")
        elif record.room(backend, BUILD_S / 2):
            with_folder(record, backend, bundle.path, expected)


def cannot_build(backend: str) -> str | None:
    """Why plans of the flavour can't be built for this card, or None. That is no failure."""
    from ddm_rt.engine.tensorrt import build, flavours
    from ddm_rt.errors import DdmError

    flavour = flavours.flavour(backend)
    if (reason := flavours.cannot_build(flavour)) is not None:
        return reason
    try:
        build.targets(flavour, [])
    except DdmError as error:
        return str(error)
    return None


def with_folder(record: Record, backend: str, source: Path, expected: Any) -> None:
    """Build a copy of the bundle for this card and measure it; whatever fails is a row, not the section's end."""
    import tempfile

    from ddm_rt.bundle import Bundle
    from ddm_rt.errors import DdmError
    from ddm_rt.sample.pipeline import Pipeline

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "bundle"
        shutil.copytree(source, copy)
        start = time.perf_counter()
        failure = build_plans(copy, backend, min(BUILD_S, record.left()))
        seconds = time.perf_counter() - start
        if failure is not None:
            record.add(backend=backend, build_s=seconds, passed=False, error=failure)
            return
        try:
            pipeline = Pipeline.load(Bundle.load(copy), backend=backend)
            found = pipeline.generate(n=IMAGES, seed=0).images
        except DdmError as error:
            record.add(backend=backend, build_s=seconds, passed=False, error=str(error))
            return
        worst = int(np.abs(found.astype(int) - expected.astype(int)).max())
        record.add(backend=backend, build_s=seconds, images=IMAGES, grey_levels=worst, passed=worst <= 1)
        for batch in THROUGHPUT_BATCHES:
            if record.room(f"{backend} batch {batch}", 3):
                rate(record, backend, pipeline, batch)


def build_plans(bundle: Path, backend: str, limit_s: float) -> str | None:
    """`ddm-rt build` for the present card, in its own process; why it failed, or None."""
    command = [
        sys.executable,
        "-P",
        "-m",
        "ddm_rt.cli",
        "build",
        str(bundle),
        "--backend",
        backend,
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return f"the build took more than {limit_s:.0f} s"
    return None if done.returncode == 0 else f"exit code {done.returncode}: {done.stderr.strip()[-500:]}"


def rate(record: Record, backend: str, pipeline: Any, batch: int) -> None:
    """Images per second of whole requests, the host's part included."""
    pipeline.generate(n=batch, seed=0)
    times: list[float] = []
    while len(times) < 3 or (len(times) < 20 and sum(times) < 1):
        start = time.perf_counter()
        pipeline.generate(n=batch, seed=0)
        times.append(time.perf_counter() - start)
    seconds = quantiles(times)
    record.add(
        backend=backend,
        batch=batch,
        request_s=seconds["median"],
        request_q20=seconds["q20"],
        request_q80=seconds["q80"],
        images_per_s=batch / seconds["median"],
    )


def onnxruntime_cuda(record: Record, bundle: Any, expected: Any) -> None:
    """Our engine on ONNX Runtime's provider for CUDA devices."""
    from ddm_rt.engine import backends
    from ddm_rt.engine.devices import CUDA_DEVICE
    from ddm_rt.errors import DdmError
    from ddm_rt.sample.pipeline import Pipeline

    if (reason := backends.unavailable("onnxruntime", bundle, CUDA_DEVICE)) is not None:
        record.leave_out(f"onnxruntime on cuda: {reason}")
        return
    try:
        pipeline = Pipeline.load(bundle, backend="onnxruntime", device="cuda")
        found = pipeline.generate(n=IMAGES, seed=0).images
    except DdmError as error:
        record.add(backend="onnxruntime on cuda", passed=False, error=str(error))
        return
    worst = int(np.abs(found.astype(int) - expected.astype(int)).max())
    record.add(backend="onnxruntime on cuda", images=IMAGES, grey_levels=worst, passed=worst <= 1)
    for batch in THROUGHPUT_BATCHES:
        if record.room(f"onnxruntime on cuda, batch {batch}", 3):
            rate(record, "onnxruntime on cuda", pipeline, batch)
