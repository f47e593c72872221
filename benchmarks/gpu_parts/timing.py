"""Medians of interleaved runs: every call gets a turn in each round, so that drifting clocks hit them all."""

import gc
import statistics
from collections.abc import Callable, Mapping
from typing import Any

Call = Callable[[], Any]
Bench = Callable[[Call], list[float]]  # a call -> milliseconds of its runs


def quantiles(times: list[float]) -> dict[str, float]:
    """Median (`p50` too), 20 %, 80 % and 95 % quantiles, linear between neighbours, in the unit of `times`."""
    ordered = sorted(times)

    def at(q: float) -> float:
        point = q * (len(ordered) - 1)
        low = int(point)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (point - low) * (ordered[high] - ordered[low])

    return {"median": at(0.5), "q20": at(0.2), "q80": at(0.8), "p50": at(0.5), "p95": at(0.95)}


def interleaved(calls: Mapping[str, Call], bench: Bench, rounds: int = 5) -> dict[str, dict[str, Any]]:
    """Per call: `quantiles` over all runs in ms, their number `runs`, and `rounds`, the median of each."""
    runs: dict[str, list[list[float]]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            runs[name].append(bench(call))
    return {
        name: quantiles([t for part in parts for t in part])
        | {"runs": sum(map(len, parts)), "rounds": [statistics.median(part) for part in parts]}
        for name, parts in runs.items()
    }


def paired_ratio(over: dict[str, Any], under: dict[str, Any]) -> dict[str, float]:
    """Ratios of two calls' times, round by round: median, 20 % and 80 % quantiles."""
    return quantiles([a / b for a, b in zip(over["rounds"], under["rounds"], strict=True)])


def do_bench(rep_ms: int = 15, warmup_ms: int = 5) -> Bench:
    """`triton.testing.do_bench`: CUDA events around each run, the L2 cache cleared before it."""
    import triton.testing

    def bench(call: Call) -> list[float]:
        times: list[float] = triton.testing.do_bench(call, warmup=warmup_ms, rep=rep_ms, return_mode="all")
        return times

    return bench


def events_bench(samples: int = 15) -> Bench:
    """Two CUDA events around each run, and nothing between the runs: the L2 cache keeps what it holds."""
    import torch

    def bench(call: Call) -> list[float]:
        call()
        times = []
        for _ in range(samples):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)))
        return times

    return bench


def captured(call: Call, times: int = 1) -> Call:
    """The call, `times` in a row, as a CUDA graph's replay: what the device does, without the time that Python takes to
    ask for it.

    What the call holds stays alive with the replay: the graph knows addresses only.
    """
    import torch

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A Triton kernel that the collector frees during capture would unload its module, which capture doesn't allow.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = None
            for _ in range(times):
                result = None  # its memory is the next one's: a series stays at the same addresses
                result = call()
    finally:
        if collecting:
            gc.enable()

    def replay(kept: Any = (call, result)) -> None:
        graph.replay()

    return replay
