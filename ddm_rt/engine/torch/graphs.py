"""CUDA graphs: what the host launched once is replayed in one launch, at the same addresses.

A graph is captured per batch size, not per number of images: what it reads lies in tensors of its own, which have room
for a whole batch. Rows beyond those of a call hold what an earlier call left there; rows never meet.
"""

import gc
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

_KEPT = 32  # graphs; each holds the memory of its own inputs and outputs

Function = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]


class Replayable(Protocol):
    def replay(self) -> None:
        """What was captured, once more, queued on the current stream."""


Capture = Callable[[Callable[[], tuple[Tensor, ...]]], tuple[Replayable, tuple[Tensor, ...]]]


class Graphs:
    """Captured functions by key. `capture` runs a function of no arguments and keeps what it did."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()

    def __call__(
        self, key: Hashable, function: Function, inputs: Mapping[str, Tensor], room: Mapping[str, int], rows: int
    ) -> tuple[Tensor, ...]:
        """The first `rows` rows of each output of `function(inputs)`, as tensors of the caller's.

        `room` says how many rows each input may come to have under this key. Functions of one key must do the same.
        """
        if key not in self._graphs:
            self._graphs[key] = _Graph(function, inputs, room, self._capture)
            if len(self._graphs) > _KEPT:
                self._graphs.popitem(last=False)
        self._graphs.move_to_end(key)
        return self._graphs[key](inputs, rows)


class _Graph:
    def __init__(
        self, function: Function, inputs: Mapping[str, Tensor], room: Mapping[str, int], capture: Capture
    ) -> None:
        self._inputs = {name: given.new_zeros((room[name], *given.shape[1:])) for name, given in inputs.items()}
        self._held: dict[str, Tensor] = {}
        self._fill(inputs)
        self._graph, self._outputs = capture(lambda: function(self._inputs))

    def __call__(self, inputs: Mapping[str, Tensor], rows: int) -> tuple[Tensor, ...]:
        self._fill(inputs)
        self._graph.replay()
        return tuple(output[:rows].clone() for output in self._outputs)  # the next replay writes over them

    def _fill(self, inputs: Mapping[str, Tensor]) -> None:
        for name, given in inputs.items():
            # Arrays are never written into, so one that is here already needs no copy.
            if self._held.get(name) is not given:
                self._inputs[name][: len(given)].copy_(given, non_blocking=True)
                self._held[name] = given


def captured_on(device: torch.device) -> Capture:
    """Captures on a CUDA device. Its graphs share their memory: they run one after the other."""
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Callable[[], tuple[Tensor, ...]]) -> tuple[Replayable, tuple[Tensor, ...]]:
        with torch.cuda.device(device):
            aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(aside):
                for _ in range(2):  # libraries and kernels are loaded, and choices made, before anything is captured
                    run()
            torch.cuda.current_stream(device).wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with _no_collection(), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                outputs = run()
        return graph, outputs

    return capture


@contextmanager
def _no_collection() -> Iterator[None]:
    """A tensor that the garbage collector frees while a graph is captured would spoil it."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
