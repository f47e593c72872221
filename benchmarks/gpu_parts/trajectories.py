"""Whole images of Stable Diffusion, ours and diffusers', one after the other in turns; and what must be compiled first.

Times are the host's: from a seed to grey levels on the host. Text encoders and conditioner are left out on both sides,
because they run once per prompt.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

from gpu_parts import models
from gpu_parts.record import RAISED, Record, read
from gpu_parts.rig import OWN, SDPA, Rig
from gpu_parts.timing import interleaved, paired_ratio
from gpu_parts.variants import BASELINES, INDICATED, PLAIN, Images, Variant, Workshop

COMPILE_S = 60.0  # seconds that must be left to begin the compilation of a variant
LOAD_S = 45.0  # to load one that was compiled before
TIMING_S = 150.0  # that stay for the turns


def section_compile(record: Record, rig: Rig, name: str, batch: int, indicator: bool) -> None:
    """Compiles the variants of one kind, for the section of images to find in Inductor's cache."""
    workshop = Workshop(models.ARCHITECTURES[name](tiny=rig.tiny), batch, rig)
    record.facts["shows"] = "seconds until the first image, with what Inductor's cache held before"
    # The same for both kinds, and for their images: another choice would be another graph.
    sdpa = compiled_before(record, name, batch).get("sdpa") or chosen_sdpa(record, rig, workshop)
    record.facts["sdpa"] = sdpa
    for variant in INDICATED if indicator else PLAIN:
        identity = {"model": name, "batch": batch, "variant": variant.name}
        if variant.mode is None or record.has(**identity):
            continue
        if not record.room(f"compile {variant.name}", COMPILE_S if not rig.dry else 0):
            continue
        start = rig.seconds()
        with Attempt(record, **identity) as tried:
            _first(workshop, variant, rig, sdpa)
            record.add(**identity, dtype="bf16", compile_s=rig.seconds() - start)
        if tried.failed:
            rig.free()


def section_images(record: Record, rig: Rig, name: str, batch: int, indicator: bool) -> None:
    """Every variant of one kind at every number of steps, interleaved; images/s and the share of the measured peak."""
    variants = INDICATED + BASELINES if indicator else PLAIN
    architecture = models.ARCHITECTURES[name](tiny=rig.tiny)
    workshop = Workshop(architecture, batch, rig)
    kept = compiled_before(record, name, batch)
    record.facts["measure"] = "seconds from seeds to grey levels on the host, on the host's clock; guided, two branches"
    record.facts["text encoders"] = "not timed; contexts are drawn"
    if "peak_tflop_per_s" not in record.facts:
        record.facts["peak_tflop_per_s"], record.facts["peak"] = matmul_peak(rig)
    sdpa = kept.get("sdpa") or chosen_sdpa(record, rig, workshop)
    record.facts["sdpa"] = f"diffusers' loop: {sdpa}, the fastest in a short run; the engine: as it ships"
    every = [(steps, variant.name) for steps in rig.steps for variant in variants]
    # Those of one run are compared, so a variant that is missing takes the others with it into the next run.
    missing = dict.fromkeys(
        steps for steps, variant in every if not record.has(model=name, batch=batch, steps=steps, variant=variant)
    )
    if not missing:
        return
    ready: dict[Variant, Images] = {}
    memory: dict[Variant, float] = {}
    for variant in variants:
        if variant.mode is not None and not has_time(record, rig, variant, kept.get("variants")):
            continue
        with Attempt(record, model=name, batch=batch, variant=variant.name):
            ready[variant], memory[variant] = _first(workshop, variant, rig, sdpa)
    for at, steps in enumerate(missing):
        if record.room(f"{steps} steps", 0 if rig.dry else 10):
            found = _compared(rig, ready, steps, record.left() / (len(missing) - at))
            rows = [
                _row(architecture, rig, record, variant, batch, steps, times, found) | {"memory_gib": memory[variant]}
                for variant, times in found.items()
            ]
            record.replace(rows, model=name, batch=batch, steps=steps)


def _first(workshop: Workshop, variant: Variant, rig: Rig, sdpa: str) -> tuple[Images, float]:
    """A variant after its first images, and the GiB that they took: its weights, and what lived beside them."""
    weights = workshop.weight_bytes(variant)
    before = rig.allocated()
    made = workshop.images(variant)
    images = partial(settings(variant, rig, sdpa), made)
    images(min(rig.steps))  # several calls: enough for CUDA graphs to be captured
    return images, (weights + rig.peak_allocated() - before) / 2**30


def settings(variant: Variant, rig: Rig, sdpa: str) -> Callable[[Images, int], Any]:
    """The engine runs as it ships. diffusers' loop gets the faster attention and cuDNN's own search."""

    def run(images: Images, steps: int) -> Any:
        if variant.ours:
            return images(steps)
        with rig.sdpa(sdpa), rig.fastest_convolutions():
            return images(steps)

    return run


def _compared(rig: Rig, ready: dict[Variant, Images], steps: int, seconds: float) -> dict[Variant, dict[str, Any]]:
    """Turns of all variants until the time is used up, within the rig's limits."""

    def bench(call: Callable[[], Any]) -> list[float]:
        times: list[float] = []
        while not times or sum(times) < 1e3 * rig.turn_s:
            rig.synchronize()
            start = rig.seconds()
            call()  # ends with a copy to the host
            times.append(1e3 * (rig.seconds() - start))
        return times

    calls = {variant.name: partial(images, steps) for variant, images in ready.items()}
    start = rig.seconds()
    interleaved(calls, bench, rounds=1)  # clocks and caches settle; it says how long a round takes, too
    fewest, most = rig.rounds
    round_s = max(rig.seconds() - start, 1e-9)
    rounds = min(most, max(fewest, math.floor(0.7 * seconds / round_s)))
    found = interleaved(calls, bench, rounds=rounds)
    return {variant: found[variant.name] for variant in ready}


def _row(
    architecture: models.Architecture,
    rig: Rig,
    record: Record,
    variant: Variant,
    batch: int,
    steps: int,
    times: dict[str, Any],
    found: dict[Variant, dict[str, Any]],
) -> dict[str, Any]:
    """What a variant's times come to, with its ratios to the compiled baselines of the same run."""
    count = models.flops(architecture.name, tiny=rig.tiny)
    seconds = times["median"] / 1e3
    rate = batch * (2 * steps * count["unet"] + count["decoder"]) / seconds / 1e12
    row = {"model": architecture.name, "dtype": "bf16", "batch": batch, "steps": steps, "variant": variant.name}
    row |= {"who": variant.who, "indicator": variant.indicator, "mode": variant.mode or "eager"}
    row |= {"pixels": architecture.pixels, "rounds": len(times["rounds"]), "runs": times["runs"]}
    row |= {"p50_ms": times["p50"], "p95_ms": times["p95"], "q20_ms": times["q20"], "q80_ms": times["q80"]}
    row |= {"images_per_s": batch / seconds, "tflop_per_s": rate, "of_peak": rate / record.facts["peak_tflop_per_s"]}
    for key, baselines in baselines_of(variant, found).items():
        fastest = min(baselines, key=lambda each: float(found[each]["median"]), default=None)
        ratio = paired_ratio(found[fastest], times) if fastest is not None else None
        row[key] = ratio["median"] if ratio else None
        row[f"{key}_q20"], row[f"{key}_q80"] = (ratio["q20"], ratio["q80"]) if ratio else (None, None)
        row[f"{key}_baseline"] = fastest.mode if fastest is not None else None
    return row


def baselines_of(variant: Variant, found: Iterable[Variant]) -> dict[str, list[Variant]]:
    """What a variant is compared with: diffusers compiled, without and (`like`) with the same indicator as it has."""
    compiled = [each for each in found if not each.ours and each.mode is not None]
    return {
        "over_compiled": [each for each in compiled if not each.indicator],
        "over_like": [each for each in compiled if each.indicator == variant.indicator],
    }


def chosen_sdpa(record: Record, rig: Rig, workshop: Workshop) -> str:
    """The order of attention kernels that is the fastest for diffusers' eager UNet at this size."""
    if "sdpa_ms" not in record.facts:
        images = workshop.images(PLAIN[0])
        calls = {}
        for order in (OWN, *SDPA):
            call = partial(_under, rig, order, images)
            try:
                call()
            except RuntimeError as error:  # a library may refuse shapes that torch thought it takes
                record.leave_out(f"attention by {order}: {str(error).strip()[:200]}")
            else:
                calls[order] = call
        bench = partial(_seconds, rig)
        found = interleaved(calls, bench, rounds=3)
        record.facts["sdpa_ms"] = {order: times["median"] for order, times in found.items()}
    times = record.facts["sdpa_ms"]
    fastest: str = min(times, key=times.__getitem__)
    return fastest


def _under(rig: Rig, order: str, images: Images) -> None:
    with rig.sdpa(order), rig.fastest_convolutions():
        images(min(rig.steps))


def _seconds(rig: Rig, call: Callable[[], Any]) -> list[float]:
    start = rig.seconds()
    call()
    return [1e3 * (rig.seconds() - start)]


def has_time(record: Record, rig: Rig, variant: Variant, compiled: list[str] | None) -> bool:
    """Whether a variant can be loaded or compiled and leave time for the turns. What a section that compiles has not
    come to waits for it: compiling here might take all of the time.
    """
    if compiled is not None and variant.name not in compiled:
        record.postpone(f"{variant.name}: not compiled yet; the section that compiles it hasn't ended")
        return False
    return record.room(variant.name, 0 if rig.dry else TIMING_S + (LOAD_S if compiled else COMPILE_S))


def compiled_before(record: Record, name: str, batch: int) -> dict[str, Any]:
    """Which attention the sections that compile found the fastest, and what they compiled, where they have run."""
    found: dict[str, Any] = {}
    for part in ("", "_indicator"):
        tree = read(record.folder / f"{name}_{batch}_compile{part}.json")
        if tree.get("key") == record.key:
            found.setdefault("variants", []).extend(row["variant"] for row in tree["rows"] if RAISED not in row)
            if "sdpa" in tree["facts"]:
                found.setdefault("sdpa", tree["facts"]["sdpa"])
    return found


def matmul_peak(rig: Rig) -> tuple[float, str]:
    """TFLOP/s of a large square bf16 product on this device: what it reaches, not what its data sheet says."""
    rates = {}
    for size in rig.peak_sizes:
        a, b = (torch.randn(size, size, device=rig.device).to(torch.bfloat16) for _ in range(2))
        product = partial(torch.matmul, a, b, out=torch.empty_like(a))
        median = interleaved({"product": product}, rig.bench(150), rounds=2)["product"]["median"]
        rates[size] = 2 * size**3 / median / 1e9
        del a, b, product
        rig.free()
    best = max(rates, key=rates.__getitem__)
    return rates[best], f"torch.matmul in bf16, {best} cubed, the best of {', '.join(map(str, rates))}"


class Attempt:
    """What goes wrong inside becomes a row, so that the other variants are still measured."""

    def __init__(self, record: Record, **identity: Any) -> None:
        self._record, self._identity, self.failed = record, identity, False

    def __enter__(self) -> "Attempt":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if not isinstance(error, Exception):
            return False
        self.failed = True
        self._record.raised(error, **self._identity)
        return True
