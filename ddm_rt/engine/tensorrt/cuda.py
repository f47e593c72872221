"""The CUDA driver, as little of it as the TensorRT engines need: device, memory, stream, kernels, graphs, events.

`cuda.bindings` is imported on use. Every call's result is checked; a failure is one DdmError with the driver's text.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ddm_rt.errors import DdmError
from ddm_rt.kernels.pack import Kernel as KernelEntry
from ddm_rt.kernels.ptx import Argument

NO_DRIVER = "no CUDA driver: libcuda.so.1 was not found"

_CAPABILITY = "CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY"
_WARP = 32
_STATIC_SHARED_BYTES = 48 * 1024  # more than this must be asked for


Driver = Any  # the module `cuda.bindings.driver`; each of its functions returns (CUresult, values...)


class OutOfMemory(DdmError):
    """The device has too little memory left."""


@dataclass(frozen=True)
class DeviceInfo:
    """A CUDA device and the driver under it."""

    name: str
    architecture: str  # "sm_89"
    driver_version: str  # the CUDA version that the driver has, "13.0"
    memory_bytes: int


def load() -> Driver:
    """`cuda.bindings.driver`, initialized. Raises DdmError saying what is missing."""
    if not has_bindings():
        raise DdmError("the package cuda-bindings is not installed; pip install cuda-bindings")
    driver = import_module("cuda.bindings.driver")
    try:
        _call(driver, "cuInit", 0)
    except RuntimeError as error:
        # cuda-bindings opens the driver's library at the first call.
        raise DdmError(NO_DRIVER) from error
    return driver


def has_bindings() -> bool:
    """Whether `cuda.bindings` is installed."""
    return find_spec("cuda") is not None and find_spec("cuda.bindings") is not None


def unavailable() -> str | None:
    """Why no CUDA device can be used here, or None."""
    try:
        device_info()
    except DdmError as error:
        return str(error)
    return None


def device_info(driver: Driver | None = None, ordinal: int = 0) -> DeviceInfo:
    """Device number `ordinal` of those that CUDA_VISIBLE_DEVICES shows; makes no context on it.

    Raises DdmError without a driver or such a device.
    """
    driver = load() if driver is None else driver
    (count,) = _call(driver, "cuDeviceGetCount")
    if ordinal >= count:
        raise DdmError(f"no CUDA device {ordinal}: the driver shows {count}")
    (device,) = _call(driver, "cuDeviceGet", ordinal)
    (name,) = _call(driver, "cuDeviceGetName", 256, device)
    (memory,) = _call(driver, "cuDeviceTotalMem", device)
    (version,) = _call(driver, "cuDriverGetVersion")
    major, minor = (
        _call(driver, "cuDeviceGetAttribute", getattr(driver.CUdevice_attribute, f"{_CAPABILITY}_{part}"), device)[0]
        for part in ("MAJOR", "MINOR")
    )
    return DeviceInfo(
        name=name.split(b"\0")[0].decode(),
        architecture=f"sm_{major}{minor}",
        driver_version=f"{version // 1000}.{version % 1000 // 10}",
        memory_bytes=int(memory),
    )


class Device:
    """A device with its primary context retained, and what is made on it.

    The context must be current in the calling thread: `activate` before anything else, in each thread.
    """

    def __init__(self, driver: Driver | None = None, ordinal: int = 0) -> None:
        """Raises DdmError without a driver or such a device."""
        self.driver = load() if driver is None else driver
        self.info = device_info(self.driver, ordinal)
        (self._device,) = self.call("cuDeviceGet", ordinal)
        (self._context,) = self.call("cuDevicePrimaryCtxRetain", self._device)
        self.activate()

    def call(self, name: str, *arguments: Any) -> tuple[Any, ...]:
        """The values of a driver call. Raises DdmError with the driver's text, OutOfMemory for that error."""
        return _call(self.driver, name, *arguments)

    def activate(self) -> None:
        """Make the context current in the calling thread."""
        self.call("cuCtxSetCurrent", self._context)

    def allocate(self, count: int) -> int:
        """Address of `count` bytes of device memory."""
        return int(self.call("cuMemAlloc", count)[0])

    def free(self, pointer: int) -> None:
        self.call("cuMemFree", pointer)

    def allocate_pinned(self, count: int) -> int:
        """Address of `count` bytes of page-locked host memory, from and to which copies are asynchronous."""
        return int(self.call("cuMemHostAlloc", count, 0)[0])

    def free_pinned(self, pointer: int) -> None:
        self.call("cuMemFreeHost", pointer)

    def close(self) -> None:
        """Give up the primary context; all that was made in it must be gone."""
        self.call("cuDevicePrimaryCtxRelease", self._device)


class Stream:
    """A stream of its own, which never waits for the default stream."""

    def __init__(self, device: Device) -> None:
        self._call = device.call
        self._driver = device.driver
        (self._stream,) = self._call("cuStreamCreate", device.driver.CUstream_flags.CU_STREAM_NON_BLOCKING)

    @property
    def handle(self) -> int:
        """The CUstream as a number, which TensorRT takes."""
        return int(self._stream)

    def upload(self, target: int, source: int, count: int) -> None:
        """Host to device; `source` stays untouched until the stream has passed this copy."""
        self._call("cuMemcpyHtoDAsync", target, source, count, self._stream)

    def download(self, target: int, source: int, count: int) -> None:
        """Device to host; `target` is whole once the stream has passed this copy."""
        self._call("cuMemcpyDtoHAsync", target, source, count, self._stream)

    def copy(self, target: int, source: int, count: int) -> None:
        """Device to device."""
        self._call("cuMemcpyDtoDAsync", target, source, count, self._stream)

    def synchronize(self) -> None:
        self._call("cuStreamSynchronize", self._stream)

    def launch(self, kernel: "Kernel", grid: tuple[int, int, int], values: Mapping[str, int]) -> None:
        """Enqueue a kernel; `values` holds an address or an integer for every argument but scratch."""
        slots = pack(kernel.facts.arguments, values)
        addresses = (ctypes.c_void_p * len(slots))(*(ctypes.addressof(slot) for slot in slots))
        sizes = (*grid, kernel.facts.num_warps * _WARP, 1, 1, kernel.facts.shared_bytes)
        # The driver copies the arguments before it returns, so that `slots` need live no longer.
        self._call("cuLaunchKernel", kernel.function, *sizes, self._stream, ctypes.addressof(addresses), 0)

    def capture(self, enqueue: Callable[[], None]) -> "Graph":
        """What `enqueue` puts on this stream, as a graph, not run. Other threads may use the device meanwhile.

        Raises DdmError where something in it can't be captured; the stream is usable again afterwards.
        """
        mode = self._driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self._stream, mode)
        try:
            enqueue()
        except BaseException:
            # The capture ends in either case, or the stream would stay in it; the first error is the one to tell.
            _, *left = self._driver.cuStreamEndCapture(self._stream)
            if left and left[0] is not None and int(left[0]):
                self._driver.cuGraphDestroy(left[0])
            raise
        (graph,) = self._call("cuStreamEndCapture", self._stream)
        try:
            (executable,) = self._call("cuGraphInstantiate", graph, 0)
        finally:
            self._call("cuGraphDestroy", graph)
        return Graph(self._call, executable)

    def replay(self, graph: "Graph") -> None:
        self._call("cuGraphLaunch", graph.executable, self._stream)

    def record(self, event: "Event") -> None:
        self._call("cuEventRecord", event.event, self._stream)

    def close(self) -> None:
        self._call("cuStreamDestroy", self._stream)


class Graph:
    """A captured, instantiated CUDA graph."""

    def __init__(self, call: Callable[..., tuple[Any, ...]], executable: Any) -> None:
        self._call, self.executable = call, executable

    def close(self) -> None:
        self._call("cuGraphExecDestroy", self.executable)


class Event:
    """A point in a stream."""

    def __init__(self, device: Device) -> None:
        self._call, self._driver = device.call, device.driver
        (self.event,) = self._call("cuEventCreate", device.driver.CUevent_flags.CU_EVENT_DISABLE_TIMING)

    def ready(self) -> bool:
        """Whether the stream has passed it; doesn't wait."""
        result = self._driver.cuEventQuery(self.event)
        if result[0] == self._driver.CUresult.CUDA_ERROR_NOT_READY:
            return False
        _checked(self._driver, "cuEventQuery", result)
        return True

    def wait(self) -> None:
        self._call("cuEventSynchronize", self.event)

    def close(self) -> None:
        self._call("cuEventDestroy", self.event)


class Kernel:
    """A function of a cubin, with what its pack's manifest says of it."""

    def __init__(self, device: Device, cubin: bytes, facts: KernelEntry) -> None:
        """Raises DdmError where the cubin isn't for this device or has no such function."""
        self._call, self.facts = device.call, facts
        (self._module,) = self._call("cuModuleLoadData", cubin)
        try:
            (self.function,) = self._call("cuModuleGetFunction", self._module, facts.entry.encode())
            if facts.shared_bytes > _STATIC_SHARED_BYTES:
                attribute = device.driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self._call("cuFuncSetAttribute", self.function, attribute, facts.shared_bytes)
        except DdmError:
            self.close()
            raise

    def close(self) -> None:
        self._call("cuModuleUnload", self._module)


_TYPES: dict[str, Any] = {"pointer": ctypes.c_uint64, "scratch": ctypes.c_uint64, "i32": ctypes.c_int32}


def pack(arguments: Sequence[Argument], values: Mapping[str, int]) -> list[Any]:
    """One ctypes number per argument, typed by its kind; scratch is null.

    Raises DdmError for a value missing, left over or outside 32 bits.
    """
    named = [argument.name for argument in arguments if argument.kind != "scratch"]
    if sorted(named) != sorted(values):
        raise DdmError(f"kernel arguments are {', '.join(named)}; given were {', '.join(values)}")
    slots = []
    for argument in arguments:
        value = 0 if argument.kind == "scratch" else int(values[argument.name])
        slot = _TYPES[argument.kind](value)
        if slot.value != value:
            raise DdmError(f"kernel argument {argument.name} is {value}, which {argument.kind} doesn't hold")
        slots.append(slot)
    return slots


def _call(driver: Driver, name: str, *arguments: Any) -> tuple[Any, ...]:
    return _checked(driver, name, getattr(driver, name)(*arguments))


def _checked(driver: Driver, name: str, result: tuple[Any, ...]) -> tuple[Any, ...]:
    error, *values = result
    if error == driver.CUresult.CUDA_SUCCESS:
        return tuple(values)
    _, text = driver.cuGetErrorString(error)
    words = text.decode() if isinstance(text, bytes) else f"error {int(error)}"
    kind = OutOfMemory if error == driver.CUresult.CUDA_ERROR_OUT_OF_MEMORY else DdmError
    raise kind(f"CUDA driver: {name}: {words}")
