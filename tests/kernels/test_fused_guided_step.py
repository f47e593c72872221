"""The fused step against the numpy oracle: in Triton's interpreter, or on a CUDA device where there is one."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from step_inputs import Inputs, inputs, tensors
from tolerances import GUIDED_STEP_FP32_REL, NOISE_FLOAT32_REL

from ddm_rt.kernels.guided_step import guided_step, table
from ddm_rt.kernels.philox import STEP_STREAM, key_of, normal, philox4x32

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
fused = pytest.importorskip("ddm_rt.kernels.guided_step.fused")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 7, 1, 9), (2, 3, 19, 18), (2, 4, 32, 32)]
EXTREME_SEEDS = np.array([0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1], np.uint64)
EXTREME_COUNTERS = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 5])

_words, _radius, _cos_sin = fused._words, fused._radius, fused._cos_sin


def run(given: Inputs, noise: bool = True) -> tuple[NDArray, NDArray]:
    outputs, *rest = given
    arguments = [tensor.to(DEVICE) for tensor in tensors(*(rest if noise else rest[:4]))]
    x_next, x0 = fused.guided_step_fused([output.to(DEVICE) for output in tensors(*outputs)], *arguments)
    return x_next.cpu().numpy(), x0.cpu().numpy()


def sizes(given: Inputs, x0: NDArray, z: NDArray) -> tuple[NDArray, NDArray]:
    """The sums of the sizes of the terms of x' and x0."""
    outputs, scales, rows, x, x0_prev, *_ = (np.abs(value) for value in given)
    a, b, c, d, e, g, f = (rows[:, k].reshape(-1, 1, 1, 1) for k in range(7))
    out = outputs[0]
    for i in range(len(outputs) - 1):
        out = out + scales[:, i].reshape(-1, 1, 1, 1) * (outputs[i + 1] + outputs[i])
    inner = a * x + b * out
    return c * x + d * (np.abs(x0) + inner) + e * x0_prev + g * out + f * np.abs(z), inner


@pytest.mark.parametrize(("branches", "noise"), table.variants())
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_oracle(shape: tuple[int, ...], branches: int, noise: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given = inputs(shape, branches)
    if not noise:
        given[2][:, 6] = 0
    want = guided_step(*given)
    # An element that nobody writes shows.
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, torch.nan))
    found = run(given, noise)
    z = normal(given[5], given[6], STEP_STREAM, shape[1:])
    for got, expected, size in zip(found, want, sizes(given, want[1], z), strict=True):
        assert got.shape == shape
        assert (np.abs(got - expected) <= GUIDED_STEP_FP32_REL * size).all()


@triton.jit
def words_kernel(seeds, counters, out, BLOCKS: tl.constexpr):
    image = tl.program_id(0)
    block = tl.arange(0, BLOCKS)
    r0, r1, r2, r3 = _words(tl.load(seeds + image), tl.load(counters + image), block)
    at = out + image * 4 * BLOCKS + 4 * block
    tl.store(at, r0.to(tl.int64))
    tl.store(at + 1, r1.to(tl.int64))
    tl.store(at + 2, r2.to(tl.int64))
    tl.store(at + 3, r3.to(tl.int64))


def test_words_are_exactly_the_references() -> None:
    out = torch.full((len(EXTREME_SEEDS), 64, 4), -1, dtype=torch.int64, device=DEVICE)
    seeds, counters = (tensor.to(DEVICE) for tensor in tensors(EXTREME_SEEDS, EXTREME_COUNTERS))
    words_kernel[(len(EXTREME_SEEDS),)](seeds, counters, out, BLOCKS=64)
    counter = (np.arange(64)[None], EXTREME_COUNTERS[:, None], np.array([[STEP_STREAM]]), np.array([[0]]))
    want = philox4x32(tuple(word.astype(np.uint64) for word in counter), key_of(EXTREME_SEEDS[:, None]))
    np.testing.assert_array_equal(out.cpu().numpy(), np.stack(want, -1).astype(np.int64))


@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1),
        (3, 19, 18),  # more than one block
        pytest.param((16, 64, 64), marks=pytest.mark.slow),  # more of the same
    ],
)
def test_noise_is_the_references_in_its_order(shape: tuple[int, ...]) -> None:
    (out,), scales, rows, x, x0_prev, *_ = inputs((len(EXTREME_SEEDS), *shape), 1)
    rows[:] = (0, 0, 0, 0, 0, 0, 1, -np.inf, np.inf)  # x' = z
    found, _ = run(([out], scales, rows, x, x0_prev, EXTREME_SEEDS, EXTREME_COUNTERS))
    want = normal(EXTREME_SEEDS, EXTREME_COUNTERS, STEP_STREAM, shape)
    np.testing.assert_allclose(found, want, rtol=NOISE_FLOAT32_REL, atol=0)


@triton.jit
def box_muller_kernel(words, out, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    word = tl.load(words + at).to(tl.uint32)
    cosine, sine = _cos_sin(word)
    tl.store(out + at, _radius(word))
    tl.store(out + BLOCK + at, cosine)
    tl.store(out + 2 * BLOCK + at, sine)


def test_box_muller_keeps_its_relative_accuracy_at_the_ends_and_at_every_eighth_of_a_turn() -> None:
    around = [k * 2**29 + near for k in range(9) for near in range(-4, 4)]
    drawn = np.random.default_rng(0).integers(0, 2**32, 3900)
    powers = [2**k for k in range(32)] + [2**32 - 2**k for k in range(32)]
    words = np.array([*(w for w in around if 0 <= w < 2**32), *powers, *drawn.tolist()])
    words = np.pad(words, (0, 4096 - len(words)))
    out = torch.full((3, 4096), torch.nan, device=DEVICE)
    box_muller_kernel[(1,)](torch.from_numpy(words).to(DEVICE), out, BLOCK=4096)
    u = [(w + 0.5) / 2**32 for w in words.tolist()]
    want = [
        [math.sqrt(-2 * math.log1p(v - 1)) for v in u],  # v - 1 is exact
        [math.cos(2 * math.pi * v) for v in u],
        [math.sin(2 * math.pi * v) for v in u],
    ]
    np.testing.assert_allclose(out.cpu().numpy(), np.array(want), rtol=NOISE_FLOAT32_REL, atol=0)


def test_images_do_not_meet_bit_for_bit() -> None:
    outputs, *rest = inputs((5, 3, 19, 18), 3)
    whole = run((outputs, *rest))
    for i in range(5):
        one = slice(i, i + 1)
        alone = run(([o[one] for o in outputs], *(value[one] for value in rest)))
        for few, many in zip(alone, whole, strict=True):
            assert few.tobytes() == many[one].tobytes()


@pytest.mark.parametrize("noise", [False, True])
def test_writes_in_place_and_nothing_beyond(noise: bool) -> None:
    given = inputs((2, 3, 19, 18), 2)
    if not noise:
        given[2][:, 6] = 0
    apart = run(given, noise)
    (out0, out1), scales, rows, x, x0_prev, seeds, counters = given
    n, margin = x[0].size, 3000
    state, before = (
        torch.cat([torch.from_numpy(value).flatten(), torch.full((margin,), 7.0)]).to(DEVICE) for value in (x, x0_prev)
    )
    keys = [tensor.to(DEVICE) for tensor in tensors(seeds, counters)] if noise else [None, None]  # never read
    pointers = [tensor.to(DEVICE) for tensor in tensors(out0, out1)]
    pointers += [None, *(tensor.to(DEVICE) for tensor in tensors(scales, rows)), state, before, *keys]
    fused._kernel[(triton.cdiv(n, table.GUIDED_STEP_BLOCK), 2)](
        *pointers, n, state, before, BRANCHES=2, NOISE=noise, BLOCK=table.GUIDED_STEP_BLOCK
    )
    for found, want in zip((state, before), apart, strict=True):
        assert found[: 2 * n].cpu().numpy().tobytes() == want.tobytes()
        assert (found[2 * n :] == 7).all()


def test_nan_and_infinity_pass_as_in_the_reference() -> None:
    given = inputs((2, 1, 3, 5), 1)
    given[3][:, 0, 0, :4] = np.nan, np.inf, -np.inf, 1e38
    given[2][1] = (1, 0, 0, 1, 0, 0, 0, -0.5, 0.25)
    with np.errstate(invalid="ignore", over="ignore"):
        want, found = guided_step(*given), run(given)
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))
    assert np.isnan(got[:, 0, 0, 0]).all()
    assert got[1, 0, 0, 1:4].tolist() == [0.25, -0.5, 0.25]


def test_a_row_that_wants_noise_and_gets_no_seeds_is_nan() -> None:
    given = inputs((2, 1, 3, 5), 1)
    given[2][0, 6] = 0
    x_next, x0 = run(given, noise=False)
    assert np.isfinite(x_next[0]).all()
    assert np.isnan(x_next[1]).all()
    assert np.isfinite(x0).all()


def test_strided_tensors_are_read_rightly() -> None:
    outputs, *rest = inputs((2, 3, 4, 6), 2)
    strided = [np.ascontiguousarray(o.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for o in outputs]
    assert not strided[0].flags.c_contiguous
    for one, other in zip(run((strided, *rest)), run((outputs, *rest)), strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize(
    ("at", "dtype", "match"),
    [(3, torch.float16, "x is torch.float16"), (2, torch.float64, "rows is"), (6, torch.int32, "counters is")],
)
def test_another_dtype_is_refused(at: int, dtype: torch.dtype, match: str) -> None:
    outputs, *rest = inputs((2, 1, 2, 2), 1)
    arguments = tensors(*rest)
    arguments[at - 1] = arguments[at - 1].to(dtype)
    with pytest.raises(ValueError, match=match):
        fused.guided_step_fused(tensors(*outputs), *arguments)
