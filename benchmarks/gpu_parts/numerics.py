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
from gpu_parts.rig import Rig
from gpu_parts.shapes import SD15_LAYERS, TINY_LAYERS, Attention, odd, sd15

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
            identity = {"op": "indicator_attention", "dtype": _name(dtype), "shape": list(shape)}
            if record.has(**identity) or not record.room(f"attention {dtype} {tuple(shape)}"):
                continue
            inputs = tensors(shape, dtype, device)
            worst = error(op(*inputs), indicator_attention_reference(*(x.double() for x in inputs)))
            record.add(**identity, error=worst, passed=worst <= TOLERANCES[dtype])


def guided_step(
    record: Record, device: str, op: Callable[..., Any], shapes: Sequence[tuple[int, ...]] = STEP_SHAPES
) -> None:
    """`op` (the fused kernel) for every number of branches, with and without noise, against numpy's float64."""
    for branches, noise in variants():
        for shape in shapes:
            identity = {"op": "guided_step", "dtype": "float32", "shape": list(shape)}
            identity |= {"branches": branches, "noise": noise}
            if record.has(**identity) or not record.room(f"guided_step {branches} {noise} {shape}"):
                continue
            host = _step_inputs(branches, noise, shape)
            expected = guided_step_reference(*_each(host, _float64))
            found = op(*_each(host, partial(_on, device)))
            worst = max(error(f.cpu(), torch.from_numpy(e)) for f, e in zip(found, expected, strict=True))
            record.add(**identity, error=worst, passed=worst <= GUIDED_STEP_TOLERANCE)


def batch_invariance(
    record: Record,
    device: str,
    op: Callable[..., Tensor],
    layers: dict[tuple[int, int], int] = SD15_LAYERS,
    batches: Sequence[int] = (1, 2, 7),
) -> None:
    """The last image of a batch of 16 has the same bits in a smaller one."""
    for name, dtype in DTYPES.items():
        for shape in sd15(16, layers):
            identity = {"op": "batch invariance", "dtype": name, "shape": list(shape)}
            if record.has(**identity) or not record.room(f"batch invariance {name} {tuple(shape)}"):
                continue
            inputs = tensors(shape, dtype, device)
            whole = op(*inputs)
            equal = all(bool(torch.equal(op(*(x[-b:] for x in inputs)), whole[-b:])) for b in batches)
            record.add(**identity, passed=equal)


def races(record: Record, rig: Rig, repeats: int = REPEATS) -> None:
    """The same call many times beside matrix products on a second stream: every result has the same bits."""
    layers = TINY_LAYERS if rig.tiny else SD15_LAYERS
    with rig.other_work() as work:

        def repeated(call: Callable[[], Any]) -> bool:
            first = call()
            for _ in range(repeats):
                work()
                if not _same_bits(call(), first):
                    return False
            return True

        for name, dtype in DTYPES.items():
            for shape in [*sd15(8, layers), *odd(table.HEAD_DIMS)[::5]]:
                identity = {"op": "indicator_attention", "dtype": name, "shape": list(shape)}
                if not record.has(**identity) and record.room(f"races {name} {tuple(shape)}"):
                    passed = repeated(partial(rig.attention(), *tensors(shape, dtype, rig.device)))
                    record.add(**identity, repeats=repeats, passed=passed)
        for branches, noise in variants():
            identity = {"op": "guided_step", "branches": branches, "noise": noise}
            if not record.has(**identity) and record.room(f"races guided_step {branches} {noise}"):
                arguments = _each(_step_inputs(branches, noise, STEP_SHAPES[0]), partial(_on, rig.device))
                passed = repeated(partial(rig.guided_step(), *arguments))
                record.add(**identity, repeats=repeats, passed=passed)


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
    counters: Any = np.arange(batch, dtype=np.int64) if noise else None
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


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def section_numerics(record: Record, rig: Rig) -> None:
    """Both kernels at every shape, and batch invariance."""
    record.facts["measure"] = "largest |error| / max(1, |value|) against float64 of the same inputs"
    record.facts["tolerances"] = {_name(dtype): limit for dtype, limit in TOLERANCES.items()}
    layers = TINY_LAYERS if rig.tiny else SD15_LAYERS
    guided_step(record, rig.device, rig.guided_step(), STEP_SHAPES[-1:] if rig.tiny else STEP_SHAPES)
    # Each head dim and dtype is a kernel that takes seconds to compile. The model's own come first.
    shapes = [*sd15(2, layers), *odd(table.HEAD_DIMS)]
    attention(record, list(DTYPES.values()), shapes, rig.device, rig.attention())
    batch_invariance(record, rig.device, rig.attention(), layers)


def section_races(record: Record, rig: Rig) -> None:
    races(record, rig, 2 if rig.dry else REPEATS)
