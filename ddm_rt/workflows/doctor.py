"""`ddm-rt doctor`: each backend, TensorRT flavour, kernel flavour and plan, available or the reason why not."""

import itertools
import os
import platform
from collections.abc import Iterator

from ddm_rt.bundle import Bundle
from ddm_rt.engine.backends import availability, choose
from ddm_rt.engine.devices import CPU, CUDA, Device
from ddm_rt.engine.machine import installed
from ddm_rt.engine.ort import sessions
from ddm_rt.engine.tensorrt import cuda, flavours, plans
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.kernels import dispatch
from ddm_rt.sample.cache import record

PACKAGES = (
    *("numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "torch", "diffusers", "onnx", "triton", "cuda-bindings"),
    *("tensorrt", "tensorrt-rtx"),
)

Row = tuple[str, bool, str]  # part, available, detail


def checks(bundle: Bundle | None = None) -> Iterator[Row]:
    """Rows for machine, packages, GPU, backends, TensorRT flavours and kernels; with a bundle, for its plans too.

    What isn't there is a row that says why, never an error.
    """
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    yield "machine", True, machine
    for name in PACKAGES:
        found = installed(name)
        yield f"package {name}", found is not None, found or "not installed"
    if (clash := sessions.clash()) is not None:
        yield "packages of onnxruntime", False, clash
    gpu, device = _gpu()
    yield gpu
    for name, reason in availability(bundle).items():
        yield f"backend {name}", reason is None, reason or "ready"
    if bundle is not None:
        yield _auto(bundle)
    yield from map(_builder, flavours.TABLE.values())
    for op, implementations in dispatch.TABLE.items():
        for name in dispatch.IMPLEMENTATIONS:
            reason = dispatch.unavailable(op, name)
            yield f"kernel {op}: {name}", reason is None, reason or implementations[name].split(":")[0]
    if bundle is not None:
        names = plans.names(bundle)
        yield from (_plan(bundle, name, gpu, device) for name in names)
        if not names:
            yield "plans", False, f"{bundle.path} has none; ddm-rt build makes them"
        yield from _compiled(bundle)
        yield from _caches(bundle)


def _auto(bundle: Bundle) -> Row:
    try:
        choice = choose(bundle)
    except BackendUnavailable as error:
        return "backend auto", False, str(error)
    return "backend auto", True, str(choice)


def _gpu() -> tuple[Row, cuda.DeviceInfo | None]:
    try:
        device = cuda.device_info()
    except DdmError as error:
        return ("GPU", False, str(error)), None
    memory = device.memory_bytes / 2**30
    detail = f"{device.name}, {device.architecture}, {memory:.0f} GiB, driver of CUDA {device.driver_version}"
    return ("GPU", True, detail), device


def _builder(flavour: flavours.Flavour) -> Row:
    name = f"builds of {flavour.name}"
    if (reason := flavours.cannot_build(flavour)) is not None:
        return name, False, reason
    target = "the present GPU" if flavour.needs_device else f"{', '.join(flavour.architectures)}, with or without a GPU"
    return name, True, f"{flavours.version(flavour)}, for {target}"


def _plan(bundle: Bundle, name: str, gpu: Row, device: cuda.DeviceInfo | None) -> Row:
    reasons = plans.review(bundle, name, None if device is None else (device.architecture, device.name))
    if device is None:
        # What could be checked without a GPU comes first: it is what a person can mend here.
        reasons = [*(reasons or ["it fits the bundle and the installed version"]), gpu[2]]
    return f"plan {name}", not reasons, "; ".join(reasons) or "fits this machine"


def _compiled(bundle: Bundle) -> Iterator[Row]:
    """Networks that were compiled for torch; none where torch isn't installed."""
    if installed("torch") is None:
        return
    from ddm_rt.engine.torch import packages
    from ddm_rt.engine.torch.networks import DTYPES

    for device, precision in itertools.product((Device(CUDA), Device(CPU)), DTYPES):
        name = f"compiled for torch on {device.kind}: {precision}"
        try:
            found = packages.find(bundle, precision, device)
        except DdmError as error:
            yield name, False, str(error)
            continue
        if found is not None:
            yield name, True, f"batch sizes {', '.join(map(str, found.sizes))}; {found.path}"


def _caches(bundle: Bundle) -> Iterator[Row]:
    """Of each whether `--cache auto` takes it for requests that it holds for."""
    found = record.load_all(bundle)
    for name, cache in found.items():
        if isinstance(cache, DdmError):
            yield f"cache {name}", False, str(cache)
            continue
        judged = cache.judged
        said = (
            "not judged"
            if judged is None
            else f"shares {judged.balance}, quality {judged.quality}, diversity {judged.diversity}"
        )
        foreign = "" if bundle.is_of(cache.bundle_id) else f"of another bundle, {cache.bundle_id[:12]}; "
        taken = judged is not None and judged.convinces and not foreign
        yield (
            f"cache {name}",
            taken,
            f"{foreign}{cache.calls} of {cache.settings.num_steps} steps call the model; {said}",
        )
    if not found:
        yield "caches", False, f"{bundle.path} has none; ddm-rt cache finds one"
