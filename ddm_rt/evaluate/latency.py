"""How fast a bundle is here: latency over batch sizes, throughput, and the first image of a new process."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

import ddm_rt
from ddm_rt.config import Frozen
from ddm_rt.engine.machine import Machine, machine
from ddm_rt.errors import DdmError
from ddm_rt.evaluate.comparison.sides import Facts, Side, check_side, make_side, open_side, seconds_of_requests
from ddm_rt.evaluate.run import NO_TEXT, Text
from ddm_rt.sample.pipeline import Pipeline

BATCHES, ROUNDS, SECONDS, PROCESSES = (1, 4, 16), 30, 60.0, 3

# In a process of its own: what a program does that wants one image.
_FIRST_IMAGE = """
import json, sys
from ddm_rt import Pipeline
given = json.loads(sys.argv[1])
loading = {name: given[name] for name in ("backend", "device", "threads", "precision")}
Pipeline.load(given["source"], **loading).generate(n=1, **given["request"])
"""

OnRound = Callable[[int, int], None]


class Latency(Frozen):
    """Requests for n images each, one after the other. Quantiles are over requests."""

    n: int
    rounds: int
    latency_p25_ms: float
    latency_p50_ms: float
    latency_p75_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    images_per_s: float  # n over the median
    speedup: float | None  # median of baseline over own, paired by round; None without a baseline, or for it
    speedup_range: tuple[float, float] | None  # quartiles


class SideSpeed(Frozen):
    """One side: what it is, and how fast."""

    facts: Facts
    load_s: float  # open the bundle and try out batch sizes, in a process that has done so before for the other side
    first_request_s: float  # for one image, right after loading
    cold_s: tuple[float, ...]  # new process to first image, the process included; empty: not measured
    rows: tuple[Latency, ...]


class Speed(Frozen):
    """All figures of one `ddm-rt bench`."""

    schema_version: Literal[1] = 1
    version: str  # of ddm_rt
    machine: Machine
    side: SideSpeed
    baseline: SideSpeed | None


def bench(
    side: Side,
    against: Side | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    processes: int = PROCESSES,
    text: Text = NO_TEXT,
    on_round: OnRound | None = None,
) -> Speed:
    """The side's speed, with `against` as its baseline in turn with it (A B A B).

    Args:
        batches: images of a request, each measured by itself.
        rounds, seconds: of each batch size: so many, or fewer once the time is over, at least 3.
        processes: new ones for the first image; 0: none.
        text: arguments of `Pipeline.generate` about prompts.

    Raises:
        DdmError: a sampled directory, a bad setting, or prompts that the bundle doesn't take.
        BackendUnavailable: a side's backend can't run here.
    """
    if rounds < 1 or seconds <= 0 or processes < 0 or not batches or min(batches) < 1:
        raise DdmError(
            f"batches {list(batches)}, rounds {rounds}, seconds {seconds:g}, processes {processes}; expected batches "
            "and rounds of at least 1, seconds above 0 and processes of at least 0"
        )
    sides = [side] if against is None else [side, against]
    if sampled := [each.text for each in sides if each.is_sampled]:
        raise DdmError(f"{sampled[0]!r} holds images, made already; expected a bundle")
    stamp = machine()
    cold = [tuple(first_image(each, text) for _ in range(processes)) for each in sides]
    opened = [_open(each, text) for each in sides]
    taken: list[list[Latency]] = [[] for _ in sides]
    for number, n in enumerate(batches):

        def progress(done: int, before: int = number * rounds) -> None:
            if on_round is not None:
                on_round(before + done, rounds * len(batches))

        pairs = [(each, pipeline) for each, (pipeline, *_) in zip(sides, opened, strict=True)]
        samples = seconds_of_requests(pairs, n, rounds, text, seconds, progress)
        for k, own in enumerate(samples):
            taken[k].append(_latency(n, own, samples[1] if against is not None and k == 0 else None))
    made = [
        SideSpeed(facts=facts, load_s=load, first_request_s=first, cold_s=cold[k], rows=tuple(taken[k]))
        for k, (_, facts, load, first) in enumerate(opened)
    ]
    return Speed(
        version=ddm_rt.__version__, machine=stamp, side=made[0], baseline=made[1] if against is not None else None
    )


def _open(side: Side, text: Text) -> tuple[Pipeline, Facts, float, float]:
    start = time.perf_counter()
    pipeline = open_side(side)
    assert pipeline is not None
    check_side(side, pipeline.bundle, text)
    _ = pipeline.buckets
    loaded = time.perf_counter()
    facts = make_side(side, pipeline, 1, 0, asked=text).facts
    return pipeline, facts, loaded - start, time.perf_counter() - loaded


def first_image(side: Side, text: Text = NO_TEXT) -> float:
    """Seconds from starting a process to its end, which is when it has one image. Raises DdmError where it fails."""
    given = {name: getattr(side, name) for name in ("source", "backend", "device", "threads", "precision")}
    given["request"] = {**text, **side.settings}
    command = [sys.executable, "-P", "-c", _FIRST_IMAGE, json.dumps(given, default=str)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    taken = time.perf_counter() - start
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["(no message)"])[-1]
        raise DdmError(f"{side.text!r}: the first image in a new process failed: {last}")
    return taken


def _latency(n: int, samples: Sequence[float], baseline: Sequence[float] | None) -> Latency:
    ms = {f"latency_p{q}_ms": float(1000 * np.quantile(samples, q / 100)) for q in (25, 50, 75, 95, 99)}
    ratios = None if baseline is None else [b / a for a, b in zip(samples, baseline, strict=True)]
    return Latency(
        n=n,
        rounds=len(samples),
        **ms,
        images_per_s=1000 * n / ms["latency_p50_ms"],
        speedup=None if ratios is None else statistics.median(ratios),
        speedup_range=None if ratios is None else (float(np.quantile(ratios, 0.25)), float(np.quantile(ratios, 0.75))),
    )
