"""The guided-step oracle against a loop over single numbers, and on torch against numpy."""

import subprocess
import sys

import numpy as np
import pytest
from step_inputs import inputs, tensors

from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.kernels.philox import STEP_STREAM, normal

SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (5, 16, 8, 8), (3, 7, 1, 9)]


@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula_number_by_number(shape: tuple[int, ...], branches: int) -> None:
    outputs, scales, rows, x, x0_prev, seeds, counters = inputs(shape, branches)
    x_next, x0 = guided_step(outputs, scales, rows, x, x0_prev, seeds, counters)
    assert x_next.dtype == x0.dtype == np.float32
    z = normal(seeds, counters, STEP_STREAM, shape[1:])
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
    for one, other in zip(guided_step(tensors(*outputs), *tensors(*rest)), expected, strict=True):
        assert one.numpy().tobytes() == other.tobytes()


@pytest.mark.gpu
def test_torch_on_a_device_gives_the_bits_of_numpy_but_for_the_noise() -> None:
    outputs, *rest, seeds, counters = inputs((5, 16, 8, 8), 3)
    rest[1][:, 6] = 0
    expected = guided_step(outputs, *rest, seeds, counters)
    found = guided_step([o.cuda() for o in tensors(*outputs)], *(t.cuda() for t in tensors(*rest, seeds, counters)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.cpu().numpy(), other)


def test_images_do_not_meet() -> None:
    outputs, *rest = inputs((6, 3, 5, 7), 3)
    whole, _ = guided_step(outputs, *rest)
    for i in range(6):
        one = slice(i, i + 1)
        alone, _ = guided_step([o[one] for o in outputs], *(value[one] for value in rest))
        assert alone.tobytes() == whole[one].tobytes()


def test_joint_guidance() -> None:
    (null, both), _, rows, x, x0_prev, *_ = inputs((2, 1, 2, 2), 2)
    rows[:] = (0, 1, 0, 1, 0, 0, 0, -np.inf, np.inf)  # x' = x0 = the combined output
    scale = np.full((2, 1), 3, np.float32)
    x_next, _ = guided_step([null, both], scale, rows, x, x0_prev)
    np.testing.assert_array_equal(x_next, null + np.float32(3) * (both - null))


def test_seeds_may_be_left_out_only_where_unused() -> None:
    outputs, scales, rows, x, x0_prev, seeds, counters = inputs((3, 2, 4, 4), 2)
    with pytest.raises(ValueError, match="seeds and counters are None"):
        guided_step(outputs, scales, rows, x, x0_prev)
    rows[:, 6] = 0
    with_noise, _ = guided_step(outputs, scales, rows, x, x0_prev, seeds, counters)
    without, _ = guided_step(outputs, scales, rows, x, x0_prev)
    np.testing.assert_array_equal(with_noise, without)


def test_wrong_shapes_are_named() -> None:
    outputs, scales, rows, x, x0_prev, seeds, counters = inputs((3, 2, 4, 4), 2)
    for match, arguments in {
        "outputs has 0": ([], scales, rows, x, x0_prev),
        "outputs has 4": (outputs * 2, scales, rows, x, x0_prev),
        r"outputs\[1\]": ([outputs[0], outputs[1][:2]], scales, rows, x, x0_prev),
        "scales": (outputs, scales[:, :0], rows, x, x0_prev),
        "rows": (outputs, scales, rows[:1], x, x0_prev),
        "x0_prev": (outputs, scales, rows, x, x0_prev[:1]),
        "seeds has": (outputs, scales, rows, x, x0_prev, seeds[:1], counters),
        "counters has": (outputs, scales, rows, x, x0_prev, seeds, counters[:2]),
        "go together": (outputs, scales, rows, x, x0_prev, seeds),
    }.items():
        with pytest.raises(ValueError, match=match):
            guided_step(*arguments)


def test_imports_without_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import ddm_rt.kernels.guided_step as op, ddm_rt.kernels.dispatch as dispatch\n"
        "import ddm_rt.kernels.guided_step.table\n"
        "assert dispatch.load('guided_step', 'reference') is op.guided_step"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
