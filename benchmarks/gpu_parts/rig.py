"""What the sections run on: a CUDA device, or a stand-in on the CPU that goes through the same code with small sizes.

A section asks the rig for everything that only a GPU has. So a dry run differs from a real one in this file alone.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts import timing

COMPILED_SHAPES = 64  # one per variant: more than torch allows a function by default
# How attention may be computed, the first that takes the shapes: a VAE's head of 512 is too wide for the first two.
SDPA: dict[str, list[SDPBackend]] = {
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
    "cudnn": [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ],
}
OWN = "torch's own"  # no order given


@dataclass(frozen=True)
class Rig:
    """A CUDA device. `fake` below makes the one of a dry run."""

    dry: bool = False
    device: str = "cuda"
    steps: tuple[int, ...] = (25, 4)
    rounds: tuple[int, int] = (3, 15)  # of a comparison: the fewest, and the most where time is left
    turn_s: float = 0.4  # a variant's turn in a round lasts so long, or one trajectory
    peak_sizes: tuple[int, ...] = (4096, 8192, 12288, 16384)  # sides of the square products
    tiny: bool = False  # models
    notes: dict[str, str] = field(default_factory=dict)  # what a reader must know of every figure

    def attention(self) -> Callable[..., Any]:
        """The fused kernel."""
        from ddm_rt.kernels.indicator_attention.fused import indicator_attention_fused

        function: Callable[..., Any] = indicator_attention_fused
        return function

    def guided_step(self) -> Callable[..., Any]:
        from ddm_rt.kernels.guided_step.fused import guided_step_fused

        function: Callable[..., Any] = guided_step_fused
        return function

    def architecture(self) -> str:
        from ddm_rt.kernels.indicator_attention.fused import architecture

        return str(architecture(0))

    def bench(self, rep_ms: int = 15) -> timing.Bench:
        """Times a call, with an L2 cache that was cleared before each run."""
        return timing.do_bench(rep_ms)

    def warm_bench(self) -> timing.Bench:
        """Times a captured series of calls: all but the first find in the L2 cache what fits there."""
        return timing.events_bench()

    def captured(self, call: timing.Call, times: int = 1) -> timing.Call:
        return timing.captured(call, times)

    def compiled(self, module: Any, mode: str) -> Any:
        """`torch.compile` for fixed shapes, as one graph."""
        torch._dynamo.config.cache_size_limit = COMPILED_SHAPES
        return torch.compile(module, mode=mode, fullgraph=True, dynamic=False)

    def graphs(self, engine: Any) -> None:
        """The engine captures CUDA graphs by itself."""

    def new_call(self) -> None:
        """Tells CUDA graphs of torch.compile that the outputs of the call before are no longer needed."""
        torch.compiler.cudagraph_mark_step_begin()

    def sdpa(self, order: str) -> AbstractContextManager[Any]:
        return nullcontext() if order == OWN else sdpa_kernel(SDPA[order], set_priority=True)

    def only_flash(self) -> AbstractContextManager[Any]:
        return sdpa_kernel([SDPBackend.FLASH_ATTENTION])

    def fastest_convolutions(self) -> AbstractContextManager[Any]:
        """As a careful user of diffusers sets cuDNN; the engine has settings of its own."""
        flags: AbstractContextManager[Any] = torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=False, allow_tf32=True
        )
        return flags

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self) -> float:
        return time.perf_counter()

    @contextmanager
    def other_work(self) -> Iterator[Callable[[], None]]:
        """What keeps the device busy on a stream of its own, each time that it is called."""
        busy = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        matrix = torch.randn(2048, 2048, device=self.device, dtype=torch.float16)
        busy.wait_stream(torch.cuda.current_stream())

        def work() -> None:
            with torch.cuda.stream(busy):
                torch.mm(matrix, matrix)

        yield work
        torch.cuda.synchronize()

    def allocated(self) -> int:
        """Bytes on the device now; the peak counts from here on."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())

    def peak_allocated(self) -> int:
        return int(torch.cuda.max_memory_allocated())

    def free(self) -> None:
        torch.cuda.empty_cache()


_MILLISECONDS = itertools.count()


class Fake(Rig):
    """A CPU that answers as a device would. What it says of a device's time and memory is invented."""

    def attention(self) -> Callable[..., Any]:
        from ddm_rt.kernels.indicator_attention import indicator_attention_reference

        return lambda *tensors, tile=None: indicator_attention_reference(*tensors)

    def guided_step(self) -> Callable[..., Any]:
        from ddm_rt.kernels.guided_step import guided_step_reference

        function: Callable[..., Any] = guided_step_reference
        return function

    def architecture(self) -> str:
        return "sm_90"

    def bench(self, rep_ms: int = 15) -> timing.Bench:
        return _a_millisecond

    def warm_bench(self) -> timing.Bench:
        return _a_millisecond

    def captured(self, call: timing.Call, times: int = 1) -> timing.Call:
        call()
        return lambda: None

    def compiled(self, module: Any, mode: str) -> Any:
        return module

    def graphs(self, engine: Any) -> None:
        """It captures none on a CPU, so it gets ones that compute again into the same places."""
        from ddm_rt.engine.torch.graphs import Graphs

        engine._graphs = Graphs(_recorded)

    def sdpa(self, order: str) -> AbstractContextManager[Any]:
        return nullcontext()

    def only_flash(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def fastest_convolutions(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def new_call(self) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def seconds(self) -> float:
        """Another millisecond each time that it is asked."""
        return next(_MILLISECONDS) / 1e3

    @contextmanager
    def other_work(self) -> Iterator[Callable[[], None]]:
        yield lambda: None

    def allocated(self) -> int:
        return 0

    def peak_allocated(self) -> int:
        return 2**30

    def free(self) -> None:
        pass


class _Recorded:
    """What is called `replay` on a CUDA graph."""

    def __init__(self, run: Callable[[], tuple[Tensor, ...]]) -> None:
        self._run, self.outputs = run, run()

    def replay(self) -> None:
        for output, again in zip(self.outputs, self._run(), strict=True):
            output.copy_(again)


def _recorded(run: Callable[[], tuple[Tensor, ...]]) -> tuple[_Recorded, tuple[Tensor, ...]]:
    graph = _Recorded(run)
    return graph, graph.outputs


def _a_millisecond(call: timing.Call) -> list[float]:
    call()
    return [1.0]


def fake() -> Rig:
    notes = {
        "dry run": "no GPU took part and no figure here is a measurement: models are tiny, kernels are the references, "
        "times and memory are invented, CUDA graphs are replaced by calls, and torch.compile by the identity"
    }
    return Fake(
        dry=True, device="cpu", steps=(2, 1), rounds=(1, 1), turn_s=0.0, peak_sizes=(8, 16), tiny=True, notes=notes
    )


def real() -> Rig:
    return Rig()
