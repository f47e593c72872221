"""What engines on a CUDA device share: arrays are device buffers, and one stream carries copies, networks and the
ahead-of-time kernels of a step. No torch.

x, x0 and the outputs stay on the device through the loop, which never waits for it.
"""

import threading
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ddm_rt.bundle import Bundle
from ddm_rt.engine.composed import OfNetworks
from ddm_rt.engine.devices import CUDA_DEVICE, Device
from ddm_rt.engine.tensorrt import cuda
from ddm_rt.engine.tensorrt.buffers import Arrays, Buffer
from ddm_rt.errors import BackendUnavailable, DdmError
from ddm_rt.kernels.guided_step.reference import check_arguments
from ddm_rt.kernels.guided_step.table import variants
from ddm_rt.kernels.pack import read_pack
from ddm_rt.kernels.projected_guidance.reference import check_arguments as check_projection
from ddm_rt.kernels.projected_guidance.table import BRANCHES


class DeviceNetwork(Protocol):
    """A network on device arrays, queued on the engine's stream."""

    @property
    def inputs(self) -> Mapping[str, np.dtype[Any]]:
        """Types of what it takes, by name."""

    def __call__(self, feeds: Mapping[str, Buffer]) -> dict[str, Buffer]: ...


class StepKernels(NamedTuple):
    """What a step needs beside the denoiser, for one device."""

    guided_step: Mapping[tuple[int, bool], cuda.Kernel]  # by branches, and whether there is noise
    projected_guidance: Mapping[int, cuda.Kernel]  # by branches; empty where the pack was made before there was one


class OnDevice(OfNetworks):
    """The part of `engine.contract.Engine` over device buffers. A step's kernels are float32.

    One engine may be called from several threads, one call at a time; its stream is its own.
    """

    backend: ClassVar[str]
    threads = 1  # of the host; nothing here computes on it
    max_pixels: int | None = None
    _networks: Mapping[str, DeviceNetwork]
    _kernels: StepKernels

    def __init__(self, bundle: Bundle, threads: int | None = None, device: Device = CUDA_DEVICE) -> None:
        """`threads` is the CPU backends' and changes nothing here. Raises BackendUnavailable where `unavailable` says
        why, and as `_open`.
        """
        reason = self.unavailable(bundle, device)
        if reason is not None:
            raise BackendUnavailable(self.backend, reason, ())
        self._bundle, self._lock = bundle, threading.RLock()
        resources = ExitStack()
        # The engine's arrays and the device's memory end with the engine, by `close` or when it is forgotten.
        self.close = weakref.finalize(self, resources.close)
        try:
            self._device = cuda.Device(ordinal=device.ordinal)
            resources.callback(self._device.close)
            self._stream = cuda.Stream(self._device)
            resources.callback(self._stream.close)
            self._arrays = Arrays(self._device, self._stream)
            resources.callback(self._arrays.close)
            self._open(resources, device)
        except BaseException:
            self.close()
            raise

    @classmethod
    @abstractmethod
    def unavailable(cls, bundle: Bundle | None, device: Device = CUDA_DEVICE) -> str | None:
        """Why this backend can't run (`bundle`) on the device, or None."""

    @abstractmethod
    def _open(self, resources: ExitStack, device: Device) -> None:
        """Networks, kernels, and what the contract says of itself. What is pushed on `resources` ends before device,
        stream and arrays.
        """

    @contextmanager
    def _on_device(self) -> Iterator[Arrays]:
        """The engine's arrays, for one thread at a time, with the device's context current in it."""
        with self._lock:
            self._device.activate()
            yield self._arrays

    def _call(self, name: str, feeds: Mapping[str, Buffer | NDArray[Any]]) -> dict[str, Buffer]:
        network = self._networks[name]
        if missing := [tensor for tensor in network.inputs if tensor not in feeds]:
            raise DdmError(f"{name}: input {missing[0]} is missing; given were {', '.join(feeds)}")
        with self._on_device() as arrays:
            given = {
                tensor: value
                if isinstance(value, Buffer)
                else arrays.from_host(value.astype(network.inputs[tensor], casting="same_kind"))
                for tensor, value in feeds.items()
            }
            return network(given)

    def host(self, array: Buffer) -> NDArray[np.float32]:
        with self._on_device() as arrays:
            return arrays.to_host(array).astype(np.float32, copy=False)

    def guided_step(
        self,
        outputs: Sequence[Buffer],
        scales: Buffer,
        rows: Buffer,
        x: Buffer,
        x0_prev: Buffer,
        seeds: Buffer | None,
        counters: Buffer | None,
    ) -> tuple[Buffer, Buffer]:
        """Without seeds, a row with f != 0 gives NaN: looking at the rows would wait for the device."""
        check_arguments(outputs, scales, rows, x, x0_prev, seeds, counters)
        given = {"scales": scales, "rows": rows, "x": x, "x0_prev": x0_prev}
        given |= {f"out{i}": output for i, output in enumerate(outputs)}
        _check_float32("guided_step", given)
        if seeds is not None and counters is not None:
            given |= {"seeds": seeds, "counters": counters}
        kernel = self._kernels.guided_step[len(outputs), seeds is not None]
        n_elements = int(np.prod(x.shape[1:], dtype=np.int64))
        with self._on_device() as arrays:
            # New arrays, not in place: the first step's x0_prev is x itself, and the pool hands the old ones on.
            x_next, x0 = arrays.empty(x.shape, x.dtype), arrays.empty(x.shape, x.dtype)
            grid = (-(-n_elements // kernel.facts.tile["block"]), x.shape[0], 1)
            self._launch(kernel, grid, given | {"x_next": x_next, "x0": x0}, n_elements)
        return x_next, x0

    @property
    def projects(self) -> bool:  # type: ignore[override]
        """False where the kernels were made before there was projected guidance."""
        return bool(self._kernels.projected_guidance)

    def projected_guidance(self, outputs: Sequence[Buffer], settings: Buffer) -> Buffer:
        check_projection(outputs, settings)
        given = {f"out{i}": output for i, output in enumerate(outputs)} | {"settings": settings}
        _check_float32("projected_guidance", given)
        shape = outputs[0].shape
        with self._on_device() as arrays:
            combined = arrays.empty(shape, outputs[0].dtype)
            kernel, n_elements = self._kernels.projected_guidance[len(outputs)], int(np.prod(shape[1:], dtype=np.int64))
            self._launch(kernel, (shape[0], 1, 1), given | {"combined": combined}, n_elements)
        return combined

    def _launch(
        self, kernel: cuda.Kernel, grid: tuple[int, int, int], given: Mapping[str, Buffer], n_elements: int
    ) -> None:
        # Pointers that this variant doesn't read still have to be valid ones.
        names = (argument.name for argument in kernel.facts.arguments if argument.kind == "pointer")
        pointers = {name: given.get(name, given["out0"]).pointer for name in names}
        self._stream.launch(kernel, grid, pointers | {"n_elements": n_elements})

    def array(self, host: NDArray[Any]) -> Buffer:
        with self._on_device() as arrays:
            return arrays.from_host(host)

    def series(self, host: NDArray[Any]) -> list[Buffer]:
        with self._on_device() as arrays:
            return arrays.series(host)

    def take(self, array: Buffer, index: NDArray[np.int64]) -> Buffer:
        with self._on_device() as arrays:
            return arrays.take(array, index)

    def concat(self, arrays: Sequence[Buffer]) -> Buffer:
        with self._on_device() as here:
            return here.concat(arrays)


def step_kernels(device: cuda.Device, folder: Path, resources: ExitStack) -> StepKernels:
    """Those of the pack in `folder`. All are loaded now, as loading may wait for the device.

    Raises PackError where the pack isn't whole or has no guided_step for the device.
    """
    pack = read_pack(folder)

    def load(op: str, **wanted: int) -> cuda.Kernel:
        entry = pack.find(op, device.info.architecture, **wanted)
        kernel = cuda.Kernel(device, pack.cubin(entry), entry)
        resources.callback(kernel.close)
        return kernel

    projected = BRANCHES if any(kernel.op == "projected_guidance" for kernel in pack.kernels) else ()
    return StepKernels(
        {(branches, noise): load("guided_step", branches=branches, noise=noise) for branches, noise in variants()},
        {branches: load("projected_guidance", branches=branches) for branches in projected},
    )


def _check_float32(op: str, given: Mapping[str, Buffer]) -> None:
    for name, array in given.items():
        if array.dtype != np.float32:
            raise DdmError(f"{op}: {name} is {array.dtype}; expected float32")
