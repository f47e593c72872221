"""A fake CUDA driver in host memory, with the names of `cuda.bindings.driver` that the engines use. Nothing here is a
run on a device.

Work on a stream is only queued, and done when somebody waits for it: what reads too early sees NaN, what reuses memory
too early spoils it. `eager` does it at once instead, like a device that is always ahead.
"""

import ctypes
import json
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import cuda.bindings.driver as real
import numpy as np

from ddm_rt.kernels.guided_step import guided_step_reference
from ddm_rt.kernels.projected_guidance import projected_guidance_reference

SUCCESS = real.CUresult.CUDA_SUCCESS
NOT_READY = real.CUresult.CUDA_ERROR_NOT_READY
INVALID_CONTEXT = real.CUresult.CUDA_ERROR_INVALID_CONTEXT
UNSUPPORTED = real.CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
INVALID_IMAGE = real.CUresult.CUDA_ERROR_INVALID_IMAGE

CUBIN = b"fake cubin\0"
_POISON = 0xFF  # NaN in every float format

Work = Callable[[], None]


@dataclass(eq=False)
class Handle:
    """A stream, event, graph or the like: a number, and what the fake knows of it."""

    number: int
    work: list[Work] = field(default_factory=list)
    capture: list[Work] | None = None
    pending: int = 0
    alive: bool = True

    def __int__(self) -> int:
        return self.number


def fake_cubin(
    branches: int, noise: bool | None, block: int, shared: int, arguments: list[tuple[str, str, int]], warps: int = 4
) -> bytes:
    """guided_step, or projected_guidance where `noise` is None, for the fake: what the kernel is, the shared bytes that
    it wants, its parameters as PTX declares them.
    """
    tree = {"branches": branches, "noise": noise, "block": block, "shared": shared, "arguments": arguments}
    tree["threads"] = 32 * warps
    return CUBIN + json.dumps(tree).encode()


class FakeDriver:
    """One device. `fail` makes a call return that error; `calls` counts them; `trace` holds their names in order."""

    CUresult = real.CUresult
    CUdevice_attribute = real.CUdevice_attribute
    CUfunction_attribute = real.CUfunction_attribute
    CUstream_flags = real.CUstream_flags
    CUstreamCaptureMode = real.CUstreamCaptureMode
    CUevent_flags = real.CUevent_flags

    def __init__(self, *, eager: bool = False, architecture: tuple[int, int] = (8, 9), name: str = "Fake GPU") -> None:
        self.eager, self.architecture, self.name = eager, architecture, name
        self.fail: dict[str, Any] = {}
        self.calls: Counter[str] = Counter()
        self.trace: list[str] = []
        self.memory: dict[int, np.ndarray[Any, Any]] = {}  # device blocks by address
        self.pinned: dict[int, np.ndarray[Any, Any]] = {}
        self.streams: list[Handle] = []
        self.live: Counter[str] = Counter()  # streams, events, graphs, modules, contexts
        self.capture_modes: list[Any] = []
        self._numbers = iter(range(1, 10**9))
        self._current = threading.local()
        self._capturing: dict[int, Handle] = {}  # thread -> stream

    # Devices and contexts

    def cuInit(self, flags: int) -> tuple[Any, ...]:
        return self._result("cuInit", context=False)

    def cuGetErrorString(self, error: Any) -> tuple[Any, ...]:
        return SUCCESS, f"the fake's text for {error.name}".encode()

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return self._result("cuDriverGetVersion", 13010, context=False)

    def cuDeviceGetCount(self) -> tuple[Any, ...]:
        return self._result("cuDeviceGetCount", 1, context=False)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self._result("cuDeviceGet", ordinal, context=False)

    def cuDeviceGetName(self, length: int, device: Any) -> tuple[Any, ...]:
        return self._result("cuDeviceGetName", self.name.encode().ljust(length, b"\0"), context=False)

    def cuDeviceTotalMem(self, device: Any) -> tuple[Any, ...]:
        return self._result("cuDeviceTotalMem", 2**30, context=False)

    def cuDeviceGetAttribute(self, attribute: Any, device: Any) -> tuple[Any, ...]:
        major = attribute == real.CUdevice_attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        return self._result("cuDeviceGetAttribute", self.architecture[0 if major else 1], context=False)

    def cuDevicePrimaryCtxRetain(self, device: Any) -> tuple[Any, ...]:
        return self._made("context", "cuDevicePrimaryCtxRetain", Handle(7), context=False)

    def cuDevicePrimaryCtxRelease(self, device: Any) -> tuple[Any, ...]:
        return self._gone("context", "cuDevicePrimaryCtxRelease", None)

    def has_context(self) -> bool:
        return getattr(self._current, "context", None) is not None

    def cuCtxSetCurrent(self, context: Handle) -> tuple[Any, ...]:
        self._current.context = context
        return self._result("cuCtxSetCurrent")

    # Memory

    def cuMemAlloc(self, count: int) -> tuple[Any, ...]:
        return self._allocate("cuMemAlloc", self.memory, count)

    def cuMemHostAlloc(self, count: int, flags: int) -> tuple[Any, ...]:
        return self._allocate("cuMemHostAlloc", self.pinned, count)

    def cuMemFree(self, pointer: int) -> tuple[Any, ...]:
        return self._free("cuMemFree", self.memory, pointer)

    def cuMemFreeHost(self, pointer: int) -> tuple[Any, ...]:
        return self._free("cuMemFreeHost", self.pinned, pointer)

    def cuMemcpyHtoDAsync(self, target: int, source: int, count: int, stream: Handle) -> tuple[Any, ...]:
        return self._copy("cuMemcpyHtoDAsync", self.memory, target, self.pinned, source, count, stream)

    def cuMemcpyDtoHAsync(self, target: int, source: int, count: int, stream: Handle) -> tuple[Any, ...]:
        return self._copy("cuMemcpyDtoHAsync", self.pinned, target, self.memory, source, count, stream)

    def cuMemcpyDtoDAsync(self, target: int, source: int, count: int, stream: Handle) -> tuple[Any, ...]:
        return self._copy("cuMemcpyDtoDAsync", self.memory, target, self.memory, source, count, stream)

    def view(self, pointer: int, count: int) -> np.ndarray[Any, Any]:
        """`count` bytes of device memory; an address outside what was allocated is a fault."""
        return _within(self.memory, pointer, count)

    # Streams, events, graphs

    def cuStreamCreate(self, flags: Any) -> tuple[Any, ...]:
        assert flags == real.CUstream_flags.CU_STREAM_NON_BLOCKING
        self.streams.append(Handle(next(self._numbers)))
        return self._made("stream", "cuStreamCreate", self.streams[-1])

    def cuStreamDestroy(self, stream: Handle) -> tuple[Any, ...]:
        return self._gone("stream", "cuStreamDestroy", stream)

    def cuStreamSynchronize(self, stream: Handle) -> tuple[Any, ...]:
        result = self._result("cuStreamSynchronize", unsafe=True)
        if result[0] == SUCCESS:
            self.drain(stream)
        return result

    def cuStreamBeginCapture(self, stream: Handle, mode: Any) -> tuple[Any, ...]:
        self.capture_modes.append(mode)
        result = self._result("cuStreamBeginCapture")
        if result[0] == SUCCESS:
            stream.capture = []
            self._capturing[threading.get_ident()] = stream
        return result

    def cuStreamEndCapture(self, stream: Handle) -> tuple[Any, ...]:
        captured, stream.capture = stream.capture, None
        self._capturing.pop(threading.get_ident(), None)
        assert captured is not None
        result = self._made("graph", "cuStreamEndCapture", Handle(next(self._numbers), captured))
        return result if result[0] == SUCCESS else (result[0], None)

    def cuGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        return self._made("executable", "cuGraphInstantiate", Handle(next(self._numbers), list(graph.work)))

    def cuGraphLaunch(self, executable: Handle, stream: Handle) -> tuple[Any, ...]:
        assert executable.alive
        result = self._result("cuGraphLaunch")
        for work in executable.work if result[0] == SUCCESS else ():
            self.queue(stream, work)
        return result

    def cuGraphDestroy(self, graph: Handle) -> tuple[Any, ...]:
        return self._gone("graph", "cuGraphDestroy", graph)

    def cuGraphExecDestroy(self, executable: Handle) -> tuple[Any, ...]:
        return self._gone("executable", "cuGraphExecDestroy", executable)

    def cuEventCreate(self, flags: Any) -> tuple[Any, ...]:
        return self._made("event", "cuEventCreate", Handle(next(self._numbers)))

    def cuEventDestroy(self, event: Handle) -> tuple[Any, ...]:
        return self._gone("event", "cuEventDestroy", event)

    def cuEventRecord(self, event: Handle, stream: Handle) -> tuple[Any, ...]:
        def passed() -> None:
            event.pending -= 1

        event.pending += 1
        event.work = [lambda: self.drain(stream)]
        self.queue(stream, passed)
        return self._result("cuEventRecord")

    def cuEventQuery(self, event: Handle) -> tuple[Any, ...]:
        result = self._result("cuEventQuery", unsafe=True)
        return (NOT_READY,) if result[0] == SUCCESS and event.pending else result

    def cuEventSynchronize(self, event: Handle) -> tuple[Any, ...]:
        for wait in event.work:
            wait()
        return self._result("cuEventSynchronize", unsafe=True)

    # Kernels

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        if not image.startswith(CUBIN):
            return (INVALID_IMAGE, None)
        return self._made("module", "cuModuleLoadData", json.loads(image.removeprefix(CUBIN)))

    def cuModuleUnload(self, module: Any) -> tuple[Any, ...]:
        return self._gone("module", "cuModuleUnload", None)

    def cuModuleGetFunction(self, module: Any, name: bytes) -> tuple[Any, ...]:
        return self._result("cuModuleGetFunction", module)

    def cuFuncSetAttribute(self, function: Any, attribute: Any, value: int) -> tuple[Any, ...]:
        return self._result("cuFuncSetAttribute")

    def cuLaunchKernel(self, function: Any, *launch: Any) -> tuple[Any, ...]:
        grid, block, (shared, stream, arguments, extra) = launch[:3], launch[3:6], launch[6:]
        assert (block, shared, extra) == ((function["threads"], 1, 1), function["shared"], 0)
        slots = (ctypes.c_void_p * len(function["arguments"])).from_address(arguments)
        values = {}
        for slot, (name, kind, size) in zip(slots, function["arguments"], strict=True):
            assert slot is not None
            values[name] = int.from_bytes(ctypes.string_at(slot, size), "little", signed=kind == "i32")
            assert kind != "scratch" or values[name] == 0
        result = self._result("cuLaunchKernel")
        if result[0] == SUCCESS:
            run = self._projected_guidance if function["noise"] is None else self._guided_step
            self.queue(stream, lambda: run(function, grid, values))
        return result

    def _guided_step(self, function: Any, grid: tuple[int, int, int], values: dict[str, int]) -> None:
        n, batch, branches = values["n_elements"], grid[1], function["branches"]
        assert grid == (-(-n // function["block"]), batch, 1)

        def array(name: str, *shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
            return self._array(values[name], shape, dtype)

        for name in ("out0", "out1", "out2", "scales", "seeds", "counters"):
            self.view(values[name], 1)  # a pointer that isn't read must still be one
        state = (batch, n, 1, 1)
        noise = (array("seeds", batch, dtype=np.uint64), array("counters", batch, dtype=np.int64))
        stepped = guided_step_reference(
            [array(f"out{i}", *state) for i in range(branches)],
            array("scales", batch, branches - 1),
            array("rows", batch, 9),
            array("x", *state),
            array("x0_prev", *state),
            *(noise if function["noise"] else (None, None)),
        )
        for name, made in zip(("x_next", "x0"), stepped, strict=True):
            array(name, *state)[:] = made

    def _projected_guidance(self, function: Any, grid: tuple[int, int, int], values: dict[str, int]) -> None:
        (batch, *rest), branches = grid, function["branches"]
        assert rest == [1, 1]
        state = (batch, values["n_elements"], 1, 1)
        outputs = [self._array(values[f"out{i}"], state) for i in range(3)]  # one that isn't read must still be one
        settings = self._array(values["settings"], (batch, branches + 1))
        self._array(values["combined"], state)[:] = projected_guidance_reference(outputs[:branches], settings)

    def _array(self, pointer: int, shape: tuple[int, ...], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.view(pointer, count).view(dtype).reshape(shape)

    # What the calls share

    def queue(self, stream: Any, work: Work) -> None:
        """Work on a stream, given by itself or its number: captured, done at once, or left until somebody waits."""
        found = next(known for known in self.streams if int(known) == int(stream) and known.alive)
        if found.capture is not None:
            found.capture.append(work)
        elif self.eager:
            work()
        else:
            found.work.append(work)

    def drain(self, stream: Handle) -> None:
        work, stream.work = stream.work, []
        for each in work:
            each()

    def capturing(self, stream: Any) -> bool:
        return any(int(known) == int(stream) and known.capture is not None for known in self.streams)

    def _result(self, name: str, *values: Any, context: bool = True, unsafe: bool = False) -> tuple[Any, ...]:
        self.calls[name] += 1
        self.trace.append(name)
        if name in self.fail:
            return (self.fail[name], *(None for _ in values))
        if context and getattr(self._current, "context", None) is None:
            return (INVALID_CONTEXT, *(None for _ in values))
        if unsafe and threading.get_ident() in self._capturing:
            return (UNSUPPORTED, *(None for _ in values))
        return (SUCCESS, *values)

    def _made(self, kind: str, name: str, handle: Any, *, context: bool = True) -> tuple[Any, ...]:
        result = self._result(name, handle, context=context)
        self.live[kind] += result[0] == SUCCESS
        return result

    def _gone(self, kind: str, name: str, handle: Handle | None) -> tuple[Any, ...]:
        if handle is not None:
            assert handle.alive
            assert not (kind == "stream" and handle.work)
            handle.alive = False
        self.live[kind] -= 1
        return self._result(name)

    def _allocate(self, name: str, blocks: dict[int, Any], count: int) -> tuple[Any, ...]:
        result = self._result(name, 0, unsafe=True)
        if result[0] != SUCCESS:
            return result
        whole = np.full(count + 256, _POISON, np.uint8)
        block = whole[-whole.ctypes.data % 256 :][:count]
        blocks[block.ctypes.data] = block
        return SUCCESS, block.ctypes.data

    def _free(self, name: str, blocks: dict[int, Any], pointer: int) -> tuple[Any, ...]:
        for stream in self.streams:  # as the driver does
            self.drain(stream)
        blocks.pop(pointer)[:] = _POISON
        return self._result(name, unsafe=True)

    def _copy(
        self, name: str, targets: Any, target: int, sources: Any, source: int, count: int, stream: Handle
    ) -> tuple[Any, ...]:
        to, of = _within(targets, target, count), _within(sources, source, count)
        result = self._result(name)
        if result[0] == SUCCESS:
            self.queue(stream, lambda: np.copyto(to, of))
        return result


def _within(blocks: dict[int, Any], pointer: int, count: int) -> np.ndarray[Any, Any]:
    for start, block in list(blocks.items()):  # another engine's thread may allocate meanwhile
        if start <= pointer and pointer + count <= start + len(block):
            return np.asarray(block[pointer - start : pointer - start + count])
    raise AssertionError(f"{count} bytes at {pointer:#x} were never allocated there")
