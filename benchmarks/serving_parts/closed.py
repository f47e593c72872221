"""Clients that ask again as soon as they are answered: what of the bare engine's images a second reaches them, what a
single request costs more than a call of the engine, and what batching over requests is worth.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from serving_parts.clients import Answer, Load, asked, clients
from serving_parts.servers import one_at_a_time, served

from ddm_rt.sample.generation import encoded
from ddm_rt.sample.pipeline import Pipeline
from ddm_rt.serve.scheduling.scheduler import Scheduler

RAMP_S = 4.0  # until the clients are out of step with each other
CLIENTS = 16
SLOTS = 16
STEPS = (8, 25)


def cost(pipeline: Pipeline, rounds: int, requests: int = 12) -> dict[str, Any]:
    """Milliseconds of a request for one image over HTTP, and of the same call of the engine, in turn.

    The call too draws its code in a scope, and encodes a PNG: the product is the same.
    """
    found: dict[str, Any] = {}
    with served(pipeline) as (port, _):
        for steps in STEPS:
            over_http, bare = [], []
            for number in range(rounds):
                bare.append(_median(_calls(pipeline, steps, requests)))
                load = Load(port, 1, _long_enough(bare[-1], requests), sizes=(1, 1), steps=(steps,), seed=number)
                over_http.append(_median([answer.seconds for answer in _fine(asked(load))][2:]))
            extra = [http - call for http, call in zip(over_http, bare, strict=True)]
            found[f"{steps} steps"] = {
                "engine_p50_ms": _ms(bare),
                "http_p50_ms": _ms(over_http),
                "cost_p50_ms": _ms(extra),
                "cost_rounds_ms": [round(1000 * value, 2) for value in extra],
            }
    return found


def throughput(pipeline: Pipeline, rounds: int, seconds: float) -> dict[str, Any]:
    """Image-steps a second of the server under mixed requests, of the bare engine at full batches, in turn."""
    served_rate, bare_rate = [], []
    with served(pipeline) as (port, scheduler):
        for number in range(rounds):
            load = Load(port, CLIENTS, RAMP_S + seconds, seed=number)
            with clients(load) as running:
                served_rate.append(_steps_a_second(scheduler, seconds))
                _fine(running.answers())
            bare_rate.append(_bare(lambda k: pipeline.generate(n=SLOTS, num_steps=STEPS[k % 2]), seconds / 2))
    ratios = [ours / bare for ours, bare in zip(served_rate, bare_rate, strict=True)]
    return {
        "engine_steps_per_s": _rounded(bare_rate),
        "served_steps_per_s": _rounded(served_rate),
        "served_over_engine": round(statistics.median(ratios), 3),
        "rounds": [round(ratio, 3) for ratio in ratios],
    }


def peer(pipeline: Pipeline, rounds: int, seconds: float, sizes: tuple[int, int]) -> dict[str, Any]:
    """Sixteen clients at our server and at one that runs a request at a time, and the bare engine at both's batches."""
    with served(pipeline) as (port, _), one_at_a_time(pipeline) as other:
        load = Load(port, CLIENTS, RAMP_S + seconds, sizes=sizes)
        rates: dict[str, list[float]] = {name: [] for name in ("ours", "one", "full", "single")}
        p95s: dict[str, list[float]] = {"ours": [], "one": []}
        for number in range(rounds):
            for name, place in (("ours", port), ("one", other)):
                answers = _fine(asked(replace(load, port=place, seed=number)))
                rates[name].append(_delivered_steps(answers, seconds))
                p95s[name].append(_p95(answers))
            rng = random.Random(number)
            wanted = [(rng.randint(*sizes), rng.choice(STEPS)) for _ in range(1000)]
            rates["single"].append(
                _bare(lambda k, wanted=wanted: pipeline.generate(n=wanted[k][0], num_steps=wanted[k][1]), seconds / 2)
            )
            rates["full"].append(_bare(lambda k: pipeline.generate(n=SLOTS, num_steps=STEPS[k % 2]), seconds / 2))
    gains = _ratios(rates["full"], rates["single"]), _ratios(rates["ours"], rates["one"])
    return {
        "engine_gain_of_full_batches": round(statistics.median(gains[0]), 3),
        "served_gain_over_one_at_a_time": round(statistics.median(gains[1]), 3),
        "part_of_the_gain": round(statistics.median(_ratios(gains[1], gains[0])), 3),
        "p95_s": round(statistics.median(p95s["ours"]), 3),
        "one_at_a_time_p95_s": round(statistics.median(p95s["one"]), 3),
        "p95_over_one_at_a_time": round(statistics.median(_ratios(p95s["ours"], p95s["one"])), 3),
        "steps_per_s": {name: _rounded(values) for name, values in rates.items()},
    }


def _calls(pipeline: Pipeline, steps: int, count: int) -> list[float]:
    seconds = []
    for number in range(count + 2):
        start = time.perf_counter()
        encoded(pipeline.generate(n=1, num_steps=steps, seed=number, scope="default").images[0])
        seconds.append(time.perf_counter() - start)
    return seconds[2:]


def _long_enough(call_s: float, requests: int) -> float:
    return max((requests + 2) * (call_s + 0.003), 1.0)


def _steps_a_second(scheduler: Scheduler, seconds: float) -> float:
    time.sleep(RAMP_S)
    start, before = time.perf_counter(), scheduler.stats().steps
    time.sleep(seconds)
    return (scheduler.stats().steps - before) / (time.perf_counter() - start)


def _bare(call: Callable[[int], Any], seconds: float) -> float:
    """Image-steps a second of calls of the engine, one after another."""
    call(0)
    start, steps, k = time.perf_counter(), 0, 0
    while (now := time.perf_counter()) - start < seconds or k % 2:
        manifest = call(k).manifest
        steps, k = steps + len(manifest["images"]) * manifest["num_steps"], k + 1
    return steps / (now - start)


def _fine(answers: Sequence[Answer]) -> Sequence[Answer]:
    wrong = [answer.status for answer in answers if answer.status != 200]
    if wrong or not answers:
        raise RuntimeError(f"{len(answers)} answers, and among them the statuses {sorted(set(wrong))}")
    return sorted(answers)


def _delivered_steps(answers: Iterable[Answer], seconds: float) -> float:
    """Image-steps a second of requests that ended in the window after the ramp."""
    answers = list(answers)
    begin = min(answer.start for answer in answers) + RAMP_S
    return sum(a.n * a.steps for a in answers if begin <= a.end < begin + seconds) / seconds


def _p95(answers: Sequence[Answer]) -> float:
    begin = min(answer.start for answer in answers) + RAMP_S
    seconds = [answer.seconds for answer in answers if answer.start >= begin]
    if not seconds:
        raise RuntimeError(f"no request began after the first {RAMP_S:g} s; --seconds must be more")
    return float(np.quantile(seconds, 0.95))


def _ratios(ours: Iterable[float], others: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(ours, others, strict=True)]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _ms(values: Sequence[float]) -> float:
    return round(1000 * statistics.median(values), 2)


def _rounded(values: Iterable[float]) -> list[float]:
    return [round(value, 1) for value in values]
