"""guided_step in one pass on the device: guidance, table update, clip, and the step's noise.

Philox and the counter layout are those of `ddm_rt.kernels.philox`, word for word. Box-Muller runs in float32, where the
host computes it in float64: logarithm, cosine and sine are evaluated on arguments whose rounding is relative, so that
each number stays within 1e-6 of the host's, relative to itself, however near to zero it is. (Next to a zero of the sine
most of that is the host's: its angle is rounded at 2π.)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import triton
import triton.language as tl

from ddm_rt.kernels.guided_step.reference import check_arguments
from ddm_rt.kernels.guided_step.table import GUIDED_STEP_BLOCK, GUIDED_STEP_WARPS, POINTEES
from ddm_rt.kernels.philox import STEP_STREAM

if TYPE_CHECKING:
    from torch import Tensor

_STREAM = tl.constexpr(STEP_STREAM)


@triton.jit
def _words(seed, counter, block):
    """The four 32-bit words of Philox blocks `block` (int32) of the image with `seed` at row `counter` (int64)."""
    zero = block * 0
    return tl.philox(seed, block, zero + counter.to(tl.int32), zero + _STREAM, zero)


@triton.jit
def _radius(word):
    """√(-2·ln u) for u = (word + ½)/2³²."""
    # The nearer of u and 1 - u to zero is what float32 holds with a relative error; the other one loses it. 1 - u is
    # (~word + ½)/2³², and -ln(1 - w) = 2·artanh(w/(2 - w)), whose series at w <= ½ ends below 2e-8.
    high = word >= 0x80000000
    nearest = tl.where(high, ~word, word)
    w = (nearest.to(tl.float32) + 0.5) * 2.3283064365386963e-10
    s = w / (2.0 - w)
    p = s * s
    series = 1.0 + p * (1 / 3 + p * (1 / 5 + p * (1 / 7 + p * (1 / 9 + p * (1 / 11 + p * (1 / 13))))))
    logarithm = tl.where(high, 2.0 * s * series, -tl.log(w))
    return tl.sqrt_rn(2.0 * logarithm)


@triton.jit
def _cos_sin(word):
    """cos 2πu and sin 2πu for u = (word + ½)/2³²."""
    # Whole quarter turns are taken off in integers, which is exact; polynomials (Cephes sinf and cosf) do the rest on
    # at most an eighth of a turn. The library's cosine would keep a table in local memory for large arguments.
    quarter = (word + 0x20000000) >> 30  # wraps to 0 in the last eighth
    rest = (word - (quarter << 30)).to(tl.int32, bitcast=True)
    angle = (rest.to(tl.float32) + 0.5) * 1.4629180792671596e-09  # 2π/2³²
    q = angle * angle
    sine = angle + angle * q * (-1.6666654611e-1 + q * (8.3321608736e-3 + q * -1.9515295891e-4))
    cosine = 1.0 - 0.5 * q + q * q * (4.166664568298827e-2 + q * (-1.388731625493765e-3 + q * 2.443315711809948e-5))
    odd = (quarter & 1) != 0
    c, s = tl.where(odd, sine, cosine), tl.where(odd, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), -c, c), tl.where(quarter >= 2, -s, s)


@triton.jit
def _noise(seed, counter, start, BLOCK: tl.constexpr):
    """Standard normal numbers of the elements start to start + BLOCK (multiples of 4) of one image."""
    r0, r1, r2, r3 = _words(seed, counter, start // 4 + tl.arange(0, BLOCK // 4))
    first, second = _radius(r0), _radius(r2)
    cos0, sin0 = _cos_sin(r1)
    cos1, sin1 = _cos_sin(r3)
    # join makes a new last axis, so the four numbers of a block become neighbours in the order of the definition.
    even, odd = tl.join(first * cos0, second * cos1), tl.join(first * sin0, second * sin1)
    return tl.reshape(tl.join(even, odd), (BLOCK,))


@triton.jit
def _kernel(
    out0,
    out1,
    out2,
    scales,
    rows,
    x,
    x0_prev,
    seeds,
    counters,
    n_elements,
    x_next,
    x0,
    BRANCHES: tl.constexpr,
    NOISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (cdiv(n_elements, BLOCK), B). Pointers a variant doesn't use are never read.

    x_next may be x, and x0 may be x0_prev: the barrier stands between the last read and the first write, and no
    program touches another one's elements.
    """
    image = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * BLOCK
    index = start + tl.arange(0, BLOCK)
    inside = index < n_elements
    at = image * n_elements + index

    row = rows + image * 9
    a, b, c = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    d, e, g = tl.load(row + 3), tl.load(row + 4), tl.load(row + 5)
    f, low, high = tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)

    out = tl.load(out0 + at, inside)
    if BRANCHES > 1:
        scale = scales + image * (BRANCHES - 1)
        second = tl.load(out1 + at, inside)
        combined = out + tl.load(scale) * (second - out)
        if BRANCHES > 2:
            combined += tl.load(scale + 1) * (tl.load(out2 + at, inside) - second)
        out = combined
    state = tl.load(x + at, inside)
    clean = a * state + b * out
    # Comparisons rather than minimum and maximum: NaN stays NaN, as in the reference.
    clean = tl.where(clean < low, low, clean)
    clean = tl.where(clean > high, high, clean)
    state = c * state + d * clean + e * tl.load(x0_prev + at, inside) + g * out
    if NOISE:
        state += f * _noise(tl.load(seeds + image), tl.load(counters + image), start, BLOCK)
    else:
        state = tl.where(f != 0, float("nan"), state)
    tl.debug_barrier()
    tl.store(x_next + at, state, inside)
    tl.store(x0 + at, clean, inside)


def guided_step_fused(
    outputs: "Sequence[Tensor]",
    scales: "Tensor",
    rows: "Tensor",
    x: "Tensor",
    x0_prev: "Tensor",
    seeds: "Tensor | None" = None,
    counters: "Tensor | None" = None,
) -> "tuple[Tensor, Tensor]":
    """`guided_step_reference` in one launch; float32 tensors on one CUDA device, seeds and counters int64.

    Sums are fused, so results differ from the reference in the last places. Whether there is noise follows from
    `seeds` alone, as asking the rows would wait for the device; a row with f != 0 and no seeds gives NaN. Raises
    ValueError where the reference does, and for another dtype or device.
    """
    import torch  # compiling the kernel needs none

    check_arguments(outputs, scales, rows, x, x0_prev, seeds, counters)
    named = {"scales": scales, "rows": rows, "x": x, "x0_prev": x0_prev}
    named |= {f"out{i}": out for i, out in enumerate(outputs)}
    if seeds is not None and counters is not None:
        named |= {"seeds": seeds, "counters": counters}
    for name, tensor in named.items():
        dtype = torch.float32 if POINTEES[name] == "fp32" else torch.int64
        if tensor.dtype != dtype or tensor.device != x.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}; expected {dtype} on {x.device}")
    inputs = {name: tensor.contiguous() for name, tensor in named.items()}
    x_next, x0 = torch.empty_like(inputs["x"]), torch.empty_like(inputs["x"])
    n_elements = x[0].numel()
    pointers = [inputs.get(name, inputs["x"]) for name in POINTEES if name not in ("x_next", "x0")]
    launch: Any = _kernel[(triton.cdiv(n_elements, GUIDED_STEP_BLOCK), len(x))]
    launch(
        *pointers,
        n_elements,
        x_next,
        x0,
        BRANCHES=len(outputs),
        NOISE=seeds is not None,
        BLOCK=GUIDED_STEP_BLOCK,
        num_warps=GUIDED_STEP_WARPS,
        enable_fp_fusion=True,
    )
    return x_next, x0
