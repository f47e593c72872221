"""One TensorRT build in a process of its own: the builder may crash, or be killed for its memory, and nobody else is.

`python -m ddm_rt.engine.tensorrt.build_worker` reads a `Request` as one line of JSON on stdin and writes events as
lines of JSON on stdout; `build.py` is the other end. It ends when its stdin does: with the process that started it.
"""

import json
import os
import resource
import sys
import threading
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from ddm_rt.config import Frozen
from ddm_rt.engine.tensorrt import flavours
from ddm_rt.errors import DdmError
from ddm_rt.files import write_atomic

Send = Callable[..., None]  # of an event, a line of JSON for the other end


class Request(Frozen):
    """What to build from what. Paths are absolute; each profile gives every named axis its (min, opt, max)."""

    module: str  # tensorrt or tensorrt_rtx
    graph: Path
    plan: Path  # to write
    architecture: str | None  # to build for without its device; None: the present device
    plugins_for: str | None  # the architecture that our plugins are compiled for; None: none are registered
    profiles: tuple[dict[str, tuple[int, int, int]], ...]
    timing_cache: Path | None


def build(request: Request, send: Send) -> dict[str, Any]:
    """Parse, build, write. Returns the profiles' shapes and figures.

    Raises DdmError where the graph or the request can't be built.
    """
    send(phase="load")
    trt = import_module(request.module)
    if request.plugins_for is not None:
        from ddm_rt.engine.tensorrt import plugins

        plugins.register(architecture=request.plugins_for)
    logger = flavours.logger(trt, lambda message: send(log=message))
    builder = flavours.construct(trt, trt.Builder, logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config = builder.create_builder_config()
    set_flags(trt, config)
    _target(trt, config, request.architecture)
    send(phase="parse")
    started = time.monotonic()
    _parse(trt, network, request.graph, logger)
    parsed = time.monotonic()
    profiles = [_profile(builder, config, network, axes) for axes in request.profiles]
    cache = _open_timing_cache(config, request.timing_cache)
    config.progress_monitor = monitor = _monitor(trt, send)
    send(phase="build")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise DdmError("the builder gave no plan")
    built = time.monotonic()
    send(phase="write")
    request.plan.write_bytes(plan)
    if cache is not None and request.timing_cache is not None:
        write_atomic(request.timing_cache, bytes(config.get_timing_cache().serialize()))
    del monitor
    return {
        "profiles": profiles,
        "figures": {
            "parse_s": round(parsed - started, 3),
            "build_s": round(built - parsed, 3),
            "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,  # KiB on Linux
            "plan_mib": round(plan.nbytes / 2**20, 3),
        },
    }


def set_flags(trt: Any, config: Any) -> None:
    """What every plan is built with."""
    config.clear_flag(trt.BuilderFlag.TF32)  # fp32 means fp32
    # TensorRT-RTX captures only an engine that allocates nothing of its own; TensorRT has no such flag.
    if (flag := getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)) is not None:
        config.set_flag(flag)


def _target(trt: Any, config: Any, architecture: str | None) -> None:
    if architecture is None:
        return
    capability = getattr(trt.ComputeCapability, architecture.replace("sm_", "SM"), None)
    config.num_compute_capabilities = 1
    if capability is None or not config.set_compute_capability(capability, 0):
        raise DdmError(f"this version doesn't build for {architecture}")


def _parse(trt: Any, network: Any, graph: Path, logger: Any) -> None:
    parser = trt.OnnxParser(network, logger)
    if parser.parse_from_file(str(graph)):  # by its path: external data lies beside it
        return
    found = [parser.get_error(i) for i in range(parser.num_errors)]
    raise DdmError("; ".join(_parser_error(error) for error in found) or "the parser gave no reason")


def _parser_error(error: Any) -> str:
    text = " ".join(error.desc().split())
    code = str(error.code()).rpartition(".")[2]
    if error.node_operator():
        node = f"operator {error.node_operator()} (node {error.node_name() or error.node()!r})"
        return f"{node} is not supported" if code == "UNSUPPORTED_NODE" else f"{node}: {code}: {text}"
    return f"{code}: {text}"


def _profile(
    builder: Any, config: Any, network: Any, axes: dict[str, tuple[int, int, int]]
) -> dict[str, tuple[list[int], list[int], list[int]]]:
    """One optimization profile over the network's inputs, whose free axes bear names."""
    profile, shapes = builder.create_optimization_profile(), {}
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        columns = []
        for k, size in enumerate(tensor.shape):
            name = tensor.get_dimension_name(k)
            if size < 0 and name not in axes:
                raise DdmError(f"input {tensor.name}: axis {k} is free ({name}); expected one of {', '.join(axes)}")
            columns.append(axes[name] if size < 0 else (size, size, size))
        low, best, high = ([column[j] for column in columns] for j in range(3))
        shapes[tensor.name] = (low, best, high)
        profile.set_shape(tensor.name, tuple(low), tuple(best), tuple(high))
    if config.add_optimization_profile(profile) < 0:
        raise DdmError(f"the profile was refused: {shapes}")
    return shapes


def _open_timing_cache(config: Any, path: Path | None) -> Any:
    if path is None:
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.exists() else b"")
    if not config.set_timing_cache(cache, False):
        raise DdmError(f"timing cache {path} is of another device or version; name another file")
    return cache


def _monitor(trt: Any, send: Send) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # no stubs
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            send(phase=f"build: {phase}", done=0, total=steps)

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

        def step_complete(self, phase: str, step: int) -> bool:
            send(phase=f"build: {phase}", done=step + 1, total=self.steps.get(phase, step + 1))
            return True

    return Monitor()


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """0 with a result, a refusal or a failure that was told; anything else is a crash."""
    # The libraries may print: whatever they say to stdout goes to stderr, events keep the pipe to themselves.
    stream, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
    os.dup2(2, 1)

    def send(**event: Any) -> None:
        with lock:
            print(json.dumps(event), file=stream, flush=True)

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    request = Request.model_validate_json(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        send(result=build(request, send))
    except DdmError as error:
        send(refused=str(error))
    except OSError as error:
        send(failed=f"{error.filename or request.plan.name}: {error.strerror or error}")
    except MemoryError:
        send(failed=f"{request.plan.name}: out of memory")
    return 0


if __name__ == "__main__":
    # Without the interpreter's tear-down: a builder's destructors are no part of the build, and may crash.
    code = main()
    sys.stderr.flush()
    os._exit(code)
