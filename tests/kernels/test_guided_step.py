"""The guided-step oracle against a loop over single numbers, and on torch against numpy."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ddm_rt.kernels.guided_step import guided_step

Float32 = NDArray[np.float32]

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (5, 16, 8, 8), (3, 7, 1, 9)]


def inputs(
    shape: tuple[int, ...], branches: int, seed: int = 0
) -> tuple[list[Float32], Float32, Float32, Float32, Float32, Float32]:
    rng = np.random.default_rng(seed)
    outputs = [rng.standard_normal(shape, np.float32) for _ in range(branches)]
    scales = rng.uniform(0, 5, (shape[0], branches - 1)).astype(np.float32)
    rows = rng.standard_normal((shape[0], 9), np.float32)
    rows[:, 7], rows[:, 8] = -0.8, 0.9
    rows[::2, 7], rows[::2, 8] = -np.inf, np.inf
    x, x0_prev, z = (rng.standard_normal(shape, np.float32) for _ in range(3))
    return outputs, scales, rows, x, x0_prev, z


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula_number_by_number(shape: tuple[int, ...], branches: int) -> None:
    outputs, scales, rows, x, x0_prev, z = inputs(shape, branches)
    x_next, x0 = guided_step(outputs, scales, rows, x, x0_prev, z)
    assert x_next.dtype == x0.dtype == np.float32
    for at in np.ndindex(*shape):
        a, b, c, d, e, g, f, low, high = rows[at[0]]
        out = outputs[0][at]
        for i in range(branches - 1):
            out = out + scales[at[0], i] * (outputs[i + 1][at] - outputs[i][at])
        expected = min(max(a * x[at] + b * out, low), high)
        assert x0[at] == expected
        assert x_next[at] == c * x[at] + d * expected + e * x0_prev[at] + g * out + f * z[at]


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_torch_gives_the_bits_of_numpy(shape: tuple[int, ...], branches: int) -> None:
    outputs, *rest = inputs(shape, branches)
    expected = guided_step(outputs, *rest)
    found = guided_step([torch.from_numpy(o) for o in outputs], *(torch.from_numpy(value) for value in rest))
    for one, other in zip(found, expected, strict=True):
        assert one.numpy().tobytes() == other.tobytes()


def test_images_do_not_meet() -> None:
    outputs, scales, rows, x, x0_prev, z = inputs((6, 3, 5, 7), 3)
    whole, _ = guided_step(outputs, scales, rows, x, x0_prev, z)
    for i in range(6):
        one = slice(i, i + 1)
        alone, _ = guided_step([o[one] for o in outputs], scales[one], rows[one], x[one], x0_prev[one], z[one])
        assert alone.tobytes() == whole[one].tobytes()


def test_joint_guidance() -> None:
    (null, both), _, rows, x, x0_prev, z = inputs((2, 1, 2, 2), 2)
    rows[:] = (0, 1, 0, 1, 0, 0, 0, -np.inf, np.inf)  # x' = x0 = the combined output
    scale = np.full((2, 1), 3, np.float32)
    x_next, _ = guided_step([null, both], scale, rows, x, x0_prev, z)
    np.testing.assert_array_equal(x_next, null + np.float32(3) * (both - null))


def test_noise_may_be_left_out_only_where_unused() -> None:
    outputs, scales, rows, x, x0_prev, z = inputs((3, 2, 4, 4), 2)
    with pytest.raises(ValueError, match="z is None"):
        guided_step(outputs, scales, rows, x, x0_prev, None)
    rows[:, 6] = 0
    with_noise, _ = guided_step(outputs, scales, rows, x, x0_prev, z)
    without, _ = guided_step(outputs, scales, rows, x, x0_prev, None)
    np.testing.assert_array_equal(with_noise, without)


def test_wrong_shapes_are_named() -> None:
    outputs, scales, rows, x, x0_prev, z = inputs((3, 2, 4, 4), 2)
    with pytest.raises(ValueError, match="outputs"):
        guided_step([], scales, rows, x, x0_prev, z)
    with pytest.raises(ValueError, match="outputs"):
        guided_step(outputs * 2, scales, rows, x, x0_prev, z)
    with pytest.raises(ValueError, match="scales"):
        guided_step(outputs, scales[:, :0], rows, x, x0_prev, z)
    with pytest.raises(ValueError, match="rows"):
        guided_step(outputs, scales, rows[:1], x, x0_prev, z)


def test_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import ddm_rt.kernels.guided_step as op, ddm_rt.kernels.dispatch as dispatch\n"
        "assert dispatch.load('guided_step') is op.guided_step"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
