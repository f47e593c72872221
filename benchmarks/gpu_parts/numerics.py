"""Both kernels against float64, races under load, and the independence of an image from its batch."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddm_rt.kernels.guided_step import guided_step_reference
from ddm_rt.kernels.guided_step.table import variants
from ddm_rt.kernels.indicator_attention import indicator_attention_reference, table
from gpu_parts.record import Record
from gpu_parts.shapes import Attention, odd, sd15

# Largest |error| / max(1, |value|) against float64 of the same inputs. Half-precision inputs, float32 sums.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2.4e-2}
GUIDED_STEP_TOLERANCE = 1e-5  # float32 throughout, noise within 1e-6 of the host's
REPEATS = 50
STEP_SHAPES = ((2, 4, 64, 64), (3, 16, 8, 8), (1, 3, 17, 5))

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def tensors(shape: Attention, dtype: torch.dtype, device: str, seed: int = 0) -> list[Tensor]:
    """q, k, v, k_ind, v_ind and scale, of normal numbers; the first sample's scale is 0."""
    generator = torch.Generator(device).manual_seed(seed)
    b, n, h, d, t, m = shape
    made = [torch.randn(b, rows, h, d, generator=generator, device=device).to(dtype) for rows in (n, t, t, m, m)]
    return [*made, torch.linspace(0, 1.5, b, device=device)]


def error(found: Tensor, expected: Tensor) -> float:
    """Largest |found - expected| / max(1, |expected|); infinite for what isn't finite or of another shape."""
    if found.shape != expected.shape or not bool(found.isfinite().all()):
        return float("inf")
    expected = expected.double()
    return float(((found.double() - expected).abs() / expected.abs().clamp(min=1)).max())


def attention(
    record: Record, dtypes: Sequence[torch.dtype], shapes: Sequence[Attention], device: str, op: Callable[..., Tensor]
) -> None:
    """`op` (the fused kernel) at every shape and dtype, one row each."""
    for dtype in dtypes:
        for shape in shapes:
            if not record.room(f"attention {dtype} {tuple(shape)}"):
                continue
            inputs = tensors(shape, dtype, device)
            worst = error(op(*inputs), indicator_attention_reference(*(x.double() for x in inputs)))
            record.add(
                op="indicator_attention",
                dtype=str(dtype).removeprefix("torch."),
                shape=list(shape),
                error=worst,
                passed=worst <= TOLERANCES[dtype],
            )


def guided_step(
    record: Record, device: str, op: Callable[..., Any], shapes: Sequence[tuple[int, ...]] = STEP_SHAPES
) -> None:
    """`op` (the fused kernel) for every number of branches, with and without noise, against numpy's float64."""
    for branches, noise in variants():
        for shape in shapes:
            if not record.room(f"guided_step {branches} {noise} {shape}"):
                continue
            host = _step_inputs(branches, noise, shape)
            expected = guided_step_reference(*_each(host, _float64))
            found = op(*_each(host, partial(_on, device)))
            worst = max(error(f.cpu(), torch.from_numpy(e)) for f, e in zip(found, expected, strict=True))
            record.add(
                op="guided_step",
                dtype="float32",
                shape=list(shape),
                branches=branches,
                noise=noise,
                error=worst,
                passed=worst <= GUIDED_STEP_TOLERANCE,
            )


def batch_invariance(
    record: Record, device: str, op: Callable[..., Tensor], batches: Sequence[int] = (1, 2, 7)
) -> None:
    """The last image of a batch of 16 has the same bits in a smaller one."""
    for name, dtype in DTYPES.items():
        for shape in sd15(16):
            if not record.room(f"batch invariance {name} {tuple(shape)}"):
                continue
            inputs = tensors(shape, dtype, device)
            whole = op(*inputs)
            equal = all(bool(torch.equal(op(*(x[-b:] for x in inputs)), whole[-b:])) for b in batches)
            record.add(op="batch invariance", dtype=name, shape=list(shape), passed=equal)


def races(record: Record, fused: Callable[..., Tensor], step: Callable[..., Any]) -> None:
    """The same call 50 times beside matrix products on a second stream: every result has the same bits."""
    busy = torch.cuda.Stream()
    matrix = torch.randn(2048, 2048, device="cuda", dtype=torch.float16)

    busy.wait_stream(torch.cuda.current_stream())

    def repeated(call: Callable[[], Any]) -> bool:
        first = call()
        for _ in range(REPEATS):
            with torch.cuda.stream(busy):
                torch.mm(matrix, matrix)
            if not _same_bits(call(), first):
                return False
        return True

    for name, dtype in DTYPES.items():
        for shape in [*sd15(8), *odd(table.HEAD_DIMS)[::5]]:
            if record.room(f"races {name} {tuple(shape)}"):
                passed = repeated(partial(fused, *tensors(shape, dtype, "cuda")))
                record.add(op="indicator_attention", dtype=name, shape=list(shape), repeats=REPEATS, passed=passed)
    for branches, noise in variants():
        if record.room(f"races guided_step {branches} {noise}"):
            arguments = _each(_step_inputs(branches, noise, STEP_SHAPES[0]), partial(_on, "cuda"))
            passed = repeated(partial(step, *arguments))
            record.add(op="guided_step", branches=branches, noise=noise, repeats=REPEATS, passed=passed)
    torch.cuda.synchronize()


def _step_inputs(branches: int, noise: bool, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Arguments of `guided_step` in numpy."""
    generator = np.random.default_rng(branches)
    batch = shape[0]

    def normal(*size: int) -> Any:
        return generator.standard_normal(size).astype(np.float32)

    rows = normal(batch, 9)
    rows[:, 6] *= noise
    rows[:, 7:] = (-1.0, 1.0)
    outputs = [normal(*shape) for _ in range(branches)]
    seeds = generator.integers(0, 2**64, batch, dtype=np.uint64) if noise else None
    counters = np.arange(batch, dtype=np.int64) if noise else None
    return (outputs, normal(batch, branches - 1), rows, normal(*shape), normal(*shape), seeds, counters)


def _float64(x: Any) -> Any:
    return x if x.dtype.kind in "iu" else x.astype(np.float64)


def _on(device: str, x: Any) -> Tensor:
    """A numpy array on the device; unsigned seeds as their int64 bit patterns."""
    return torch.from_numpy(x.view(np.int64) if x.dtype.kind == "u" else x).to(device)


def _same_bits(found: Any, expected: Any) -> bool:
    if isinstance(found, Tensor):
        return bool(torch.equal(found, expected))
    return all(_same_bits(a, b) for a, b in zip(found, expected, strict=True))


def _each(arguments: tuple[Any, ...], change: Callable[[Any], Any]) -> tuple[Any, ...]:
    outputs, *rest = arguments
    return ([change(x) for x in outputs], *(None if x is None else change(x) for x in rest))


def section_numerics(record: Record) -> None:
    """The section on a CUDA device."""
    from ddm_rt.kernels.guided_step.fused import guided_step_fused
    from ddm_rt.kernels.indicator_attention.fused import indicator_attention_fused

    record.facts["measure"] = "largest |error| / max(1, |value|) against float64 of the same inputs"
    record.facts["tolerances"] = {str(k).removeprefix("torch."): v for k, v in TOLERANCES.items()}
    guided_step(record, "cuda", guided_step_fused)
    shapes = [*sd15(2), *odd(table.HEAD_DIMS)]
    attention(record, list(DTYPES.values()), shapes, "cuda", indicator_attention_fused)
    batch_invariance(record, "cuda", indicator_attention_fused)


def section_races(record: Record) -> None:
    """The section on a CUDA device."""
    from ddm_rt.kernels.guided_step.fused import guided_step_fused
    from ddm_rt.kernels.indicator_attention.fused import indicator_attention_fused

    races(record, indicator_attention_fused, guided_step_fused)
