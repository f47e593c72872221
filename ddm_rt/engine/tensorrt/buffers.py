"""Device arrays of one engine: memory that is reused, transfers that don't wait, rows by index.

Everything runs on one stream, so memory may be handed on while work on it is still queued.
"""

import ctypes
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddm_rt.engine.composed import aligned
from ddm_rt.engine.tensorrt.cuda import Device, Event, OutOfMemory, Stream

Shape = tuple[int, ...]

_MIB = 2**20
_LEAST = 512  # bytes; the driver aligns addresses to 256
_ALIGNMENT = 256  # bytes, of each array of a series
_PINNED_BYTES = 4 * _MIB  # of one size class, over its blocks
_MOST_BLOCKS = 256


class Pool:
    """Device memory in size classes, kept for the next array that needs one: a loop's steps allocate nothing."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._free: dict[int, list[int]] = {}
        self._sizes: dict[int, int] = {}  # of every block, used or not
        self._closed = False

    def allocate(self, count: int) -> "Memory":
        """At least `count` bytes. Raises OutOfMemory (a DdmError) where the device has no more."""
        size = _size_class(count)
        if self._free.get(size):
            return Memory(self._free[size].pop(), self.release)
        try:
            pointer = self._device.allocate(size)
        except OutOfMemory:
            self._trim()
            pointer = self._device.allocate(size)
        self._sizes[pointer] = size
        return Memory(pointer, self.release)

    def release(self, pointer: int) -> None:
        """Called when the last array over the block is gone, by whichever thread drops it: no driver call here."""
        if not self._closed:
            self._free.setdefault(self._sizes[pointer], []).append(pointer)

    def _trim(self) -> None:
        for pointers in self._free.values():
            while pointers:
                pointer = pointers.pop()
                del self._sizes[pointer]
                self._device.free(pointer)

    def close(self) -> None:
        """Free every block; arrays that are left must not be used again."""
        self._closed = True
        for pointer in self._sizes:
            self._device.free(pointer)
        self._sizes.clear()
        self._free.clear()


class Memory:
    """A block of a pool; given back when nothing refers to it."""

    __slots__ = ("_release", "pointer")

    def __init__(self, pointer: int, release: Callable[[int], None]) -> None:
        self.pointer, self._release = pointer, release

    def __del__(self) -> None:
        self._release(self.pointer)


@dataclass(frozen=True, eq=False)
class Buffer:
    """A contiguous device array. Nothing writes to it once what makes it is queued, so views share its memory."""

    shape: Shape
    dtype: np.dtype[Any]
    pointer: int
    memory: Memory

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        return self.shape[0] * self.row_bytes if self.shape else self.dtype.itemsize

    def rows(self, start: int, count: int) -> "Buffer":
        """`count` rows from `start`, in place."""
        if start == 0 and count == self.shape[0]:
            return self
        pointer = self.pointer + start * self.row_bytes
        return Buffer((count, *self.shape[1:]), self.dtype, pointer, self.memory)


class Arrays:
    """Makes, moves and joins the arrays of one engine on its stream."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self._stream = stream
        self.pool = Pool(device)
        self._staging = Staging(device, stream)

    def empty(self, shape: Shape, dtype: np.dtype[Any]) -> Buffer:
        """An array with unset values."""
        memory = self.pool.allocate(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
        return Buffer(tuple(int(side) for side in shape), dtype, memory.pointer, memory)

    def from_host(self, host: NDArray[Any]) -> Buffer:
        """A host array's copy on the device; the host array is free again at once."""
        host = np.ascontiguousarray(host)
        made = self.empty(host.shape, host.dtype)
        self._staging.upload(made.pointer, host)
        return made

    def series(self, host: NDArray[Any]) -> list[Buffer]:
        """The entries of a host array [K, ...], in one transfer; each begins where kernels expect an array to begin."""
        whole = self.from_host(aligned(host, _ALIGNMENT))
        starts = range(whole.pointer, whole.pointer + whole.nbytes, whole.row_bytes)
        return [Buffer(host.shape[1:], host.dtype, start, whole.memory) for start in starts]

    def to_host(self, array: Buffer) -> NDArray[Any]:
        """The array's values; waits for everything queued before."""
        return self._staging.download(array)

    def take(self, array: Buffer, index: NDArray[np.int64]) -> Buffer:
        """Rows of `array` by index: a view where they follow each other, else one copy per run of them.

        Raises IndexError for a row that the array hasn't got.
        """
        if len(index) and (index.min() < 0 or index.max() >= array.shape[0]):
            raise IndexError(f"rows {index.min()} to {index.max()} of an array that has {array.shape[0]}")
        runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
        if len(runs) == 1:
            return array.rows(int(index[0]) if len(index) else 0, len(index))
        return self.concat([array.rows(int(run[0]), len(run)) for run in runs])

    def concat(self, arrays: Sequence[Buffer]) -> Buffer:
        """Arrays joined along the first axis. Raises ValueError where their rows differ."""
        first = arrays[0]
        if len(arrays) == 1:
            return first
        for array in arrays[1:]:
            if array.shape[1:] != first.shape[1:] or array.dtype != first.dtype:
                raise ValueError(f"rows of {array.shape} {array.dtype} don't join those of {first.shape} {first.dtype}")
        joined = self.empty((sum(array.shape[0] for array in arrays), *first.shape[1:]), first.dtype)
        offset = joined.pointer
        for array in arrays:
            self.copy(offset, array)
            offset += array.nbytes
        return joined

    def copy(self, target: int, array: Buffer) -> None:
        """The array's bytes to a device address."""
        if array.nbytes:
            self._stream.copy(target, array.pointer, array.nbytes)

    def close(self) -> None:
        self._staging.close()
        self.pool.close()


@dataclass(frozen=True)
class _Block:
    pointer: int
    passed: Event  # recorded after the copy that last used the block


class Staging:
    """Page-locked memory that transfers go through, so that a copy neither waits nor reads what its caller reuses.

    A block is used again once the stream has passed its copy. Only where a size class has all its blocks in flight
    (many steps ahead of the device) does an upload wait, for the oldest.
    """

    def __init__(self, device: Device, stream: Stream) -> None:
        self._device, self._stream = device, stream
        self._blocks: dict[int, deque[_Block]] = {}  # by size, the longest unused first

    def upload(self, target: int, host: NDArray[Any]) -> None:
        if not host.nbytes:
            return
        block = self._take(host.nbytes)
        ctypes.memmove(block.pointer, host.ctypes.data, host.nbytes)
        self._stream.upload(target, block.pointer, host.nbytes)
        self._stream.record(block.passed)

    def download(self, array: Buffer) -> NDArray[Any]:
        host = np.empty(array.shape, array.dtype)
        if not host.nbytes:
            return host
        block = self._take(host.nbytes)
        self._stream.download(block.pointer, array.pointer, host.nbytes)
        self._stream.record(block.passed)
        self._stream.synchronize()
        ctypes.memmove(host.ctypes.data, block.pointer, host.nbytes)
        return host

    def _take(self, count: int) -> _Block:
        size = _size_class(count)
        blocks = self._blocks.setdefault(size, deque())
        if not blocks or not blocks[0].passed.ready():
            if len(blocks) < min(max(_PINNED_BYTES // size, 2), _MOST_BLOCKS):
                blocks.appendleft(_Block(self._device.allocate_pinned(size), Event(self._device)))
            else:
                blocks[0].passed.wait()
        blocks.rotate(-1)
        return blocks[-1]

    def close(self) -> None:
        for blocks in self._blocks.values():
            for block in blocks:
                block.passed.close()
                self._device.free_pinned(block.pointer)
        self._blocks.clear()


def _size_class(count: int) -> int:
    """Powers of two, so that few sizes serve many shapes; whole MiB above one, so that large arrays waste little."""
    if count > _MIB:
        return -(-count // _MIB) * _MIB
    return max(_LEAST, 1 << (max(count, 1) - 1).bit_length())
