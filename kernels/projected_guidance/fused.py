"""projected_guidance in one launch on the device: one program per image, which reads the image twice.

A lane of the program adds up its own elements, block by block, and the lanes are added up at the end: an order that
follows from the image's size alone, so that the batch changes no bits.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from ddm_rt.kernels.projected_guidance.reference import SMALLEST, check_arguments
from ddm_rt.kernels.projected_guidance.table import (
    PROJECTED_GUIDANCE_BLOCK,
    PROJECTED_GUIDANCE_WARPS,
)

if TYPE_CHECKING:
    from torch import Tensor

_SMALLEST = tl.constexpr(SMALLEST)


@triton.jit
def _sums(before, given, at, n_elements, BLOCK: tl.constexpr):
    """⟨Δ, Δ⟩, ⟨Δ, o⟩ and ⟨o, o⟩ of one image's outputs o = `given` and Δ = o - `before`, in float64."""
    squares = tl.zeros((BLOCK,), tl.float64)
    products = tl.zeros((BLOCK,), tl.float64)
    lengths = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n_elements, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < n_elements
        o = tl.load(given + at + index, inside, 0.0)
        delta = (o - tl.load(before + at + index, inside, 0.0)).to(tl.float64)
        o = o.to(tl.float64)
        squares += delta * delta
        products += delta * o
        lengths += o * o
    return tl.sum(squares, 0), tl.sum(products, 0), tl.sum(lengths, 0)


@triton.jit
def _factors(before, given, at, n_elements, scale, largest, eta, BLOCK: tl.constexpr):
    """p and q of one term, float32."""
    squares, product, length = _sums(before, given, at, n_elements, BLOCK)
    norm = tl.sqrt(squares)
    # Comparisons rather than maximum: NaN stays NaN, as in the reference.
    norm = tl.where(norm < largest, largest, norm)
    length = tl.where(length < _SMALLEST, _SMALLEST, length)
    p = scale * (largest / norm)
    return p.to(tl.float32), (p * (eta - 1.0) * (product / length)).to(tl.float32)


@triton.jit
def _kernel(out0, out1, out2, settings, n_elements, combined, BRANCHES: tl.constexpr, BLOCK: tl.constexpr):
    """Grid (B,). `out2` is never read where there are two branches."""
    image = tl.program_id(0).to(tl.int64)
    at = image * n_elements
    own = settings + image * (BRANCHES + 1)
    largest = tl.load(own + BRANCHES - 1).to(tl.float64)
    eta = tl.load(own + BRANCHES).to(tl.float64)
    p0, q0 = _factors(out0, out1, at, n_elements, tl.load(own).to(tl.float64), largest, eta, BLOCK)
    if BRANCHES > 2:
        p1, q1 = _factors(out1, out2, at, n_elements, tl.load(own + 1).to(tl.float64), largest, eta, BLOCK)
    for start in range(0, n_elements, BLOCK):
        index = start + tl.arange(0, BLOCK)
        inside = index < n_elements
        first = tl.load(out0 + at + index, inside)
        second = tl.load(out1 + at + index, inside)
        out = first + (p0 * (second - first) + q0 * second)
        if BRANCHES > 2:
            third = tl.load(out2 + at + index, inside)
            out += p1 * (third - second) + q1 * third
        tl.store(combined + at + index, out, inside)


def projected_guidance_fused(outputs: "Sequence[Tensor]", settings: "Tensor") -> "Tensor":
    """`projected_guidance_reference` in one launch; float32 tensors on one CUDA device.

    Sums are fused and in another order, so results differ from the reference in the last places. Raises ValueError
    where the reference does, and for another dtype or device.
    """
    import torch  # compiling the kernel needs none

    check_arguments(outputs, settings)
    named = {f"out{i}": out for i, out in enumerate(outputs)} | {"settings": settings}
    for name, tensor in named.items():
        if tensor.dtype != torch.float32 or tensor.device != settings.device:
            where = settings.device
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; expected torch.float32 on {where}")
    given = [out.contiguous() for out in outputs]
    combined = torch.empty_like(given[0])
    launch: Any = _kernel[(len(combined),)]
    launch(
        *given,
        *given[:1] * (3 - len(given)),  # a pointer that isn't read has to be one
        settings.contiguous(),
        combined[0].numel(),
        combined,
        BRANCHES=len(given),
        BLOCK=PROJECTED_GUIDANCE_BLOCK,
        num_warps=PROJECTED_GUIDANCE_WARPS,
        enable_fp_fusion=True,
    )
    return combined
