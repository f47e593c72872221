"""Projected guidance: the reference against diffusers' guider, and the fused kernel against the reference."""

import numpy as np
import pytest
import torch
from diffusers.guiders.adaptive_projected_guidance import normalized_guidance
from numpy.typing import NDArray
from tolerances import GUIDED_STEP_FP32_REL

from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.kernels.projected_guidance import projected_guidance

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1, 1, 1), (2, 3, 4, 5), (3, 7, 1, 9), (2, 4, 32, 32), (2, 3, 33, 31)]
Float32 = NDArray[np.float32]


def inputs(shape: tuple[int, ...], branches: int, norm: float = 3.0, eta: float = 0.3) -> tuple[list[Float32], Float32]:
    rng = np.random.default_rng(branches)
    outputs = [rng.standard_normal(shape, np.float32) for _ in range(branches)]
    scales = rng.uniform(0, 5, (shape[0], branches - 1))
    limits = np.full((shape[0], 2), [norm, eta])
    limits[-1] *= 2
    return outputs, np.concatenate([scales, limits], axis=1).astype(np.float32)


def size(outputs: list[Float32], settings: Float32) -> Float32:
    """Of the terms of the sum."""
    total = np.abs(outputs[0])
    for i in range(len(outputs) - 1):
        scale = settings[:, i].reshape(-1, 1, 1, 1)
        total = total + scale * (2 * np.abs(outputs[i + 1]) + np.abs(outputs[i]))
    return total


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("norm", [0.5, 5.0, 15.0, 1e9])
@pytest.mark.parametrize("shape", SHAPES)
def test_two_branches_are_diffusers_guider(shape: tuple[int, ...], norm: float, eta: float) -> None:
    outputs, settings = inputs(shape, 2)
    settings[:, 1:] = norm, eta
    found = projected_guidance(outputs, settings)
    assert found.dtype == np.float32
    for i in range(shape[0]):
        null, given = (torch.from_numpy(output[i : i + 1]) for output in outputs)
        want = normalized_guidance(given, null, float(settings[i, 0]), None, eta, norm)
        assert (np.abs(found[i] - want[0].numpy()) <= GUIDED_STEP_FP32_REL * size(outputs, settings)[i]).all()


@pytest.mark.parametrize("branches", [2, 3])
def test_without_limit_and_with_eta_1_it_is_plain_guidance(branches: int) -> None:
    outputs, settings = inputs((3, 2, 8, 8), branches, norm=1e9, eta=1.0)
    settings[:, -2:] = 1e9, 1
    row = np.zeros((3, 9), np.float32)
    row[:, 1], row[:, 7], row[:, 8] = 1, -np.inf, np.inf  # x0 is the combined output
    x = np.zeros_like(outputs[0])
    _, plain = guided_step(outputs, settings[:, :-2], row, x, x)
    np.testing.assert_array_equal(projected_guidance(outputs, settings), plain)


def test_three_branches_are_a_sum_over_two_differences() -> None:
    outputs, settings = inputs((2, 3, 4, 5), 3)
    first = projected_guidance(outputs[:2], settings[:, [0, 2, 3]])
    second = projected_guidance(outputs[1:], settings[:, 1:])
    expected = first + (second - outputs[1])
    np.testing.assert_allclose(projected_guidance(outputs, settings), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_batch_changes_no_bit(shape: tuple[int, ...], branches: int) -> None:
    outputs, settings = inputs(shape, branches)
    tensors = [torch.from_numpy(output) for output in outputs], torch.from_numpy(settings)
    together, there = projected_guidance(outputs, settings), projected_guidance(*tensors).numpy()
    for i in range(shape[0]):
        own = slice(i, i + 1)
        alone = projected_guidance([output[own] for output in outputs], settings[own])
        np.testing.assert_array_equal(alone[0], together[i])
        one = projected_guidance([output[own] for output in tensors[0]], tensors[1][own]).numpy()
        np.testing.assert_array_equal(one[0], there[i])
    assert (np.abs(there - together) <= GUIDED_STEP_FP32_REL * size(outputs, settings)).all()


def test_outputs_of_zeros_and_of_nothing_between_are_fine() -> None:
    zeros, (outputs, settings) = np.zeros((2, 1, 2, 2), np.float32), inputs((2, 1, 2, 2), 2)
    np.testing.assert_array_equal(projected_guidance([zeros, zeros], settings), zeros)
    np.testing.assert_array_equal(projected_guidance([outputs[0]] * 2, settings), outputs[0])


def test_what_doesnt_fit_is_named() -> None:
    outputs, settings = inputs((2, 1, 2, 2), 2)
    with pytest.raises(ValueError, match=r"outputs has 1 branches; expected 2 to 3"):
        projected_guidance(outputs[:1], settings)
    with pytest.raises(ValueError, match=r"settings has shape \(2, 2\); expected \(2, 3\)"):
        projected_guidance(outputs, settings[:, :2])
    with pytest.raises(ValueError, match=r"outputs\[1\] has shape \(1, 1, 2, 2\); expected \(2, 1, 2, 2\)"):
        projected_guidance([outputs[0], outputs[1][:1]], settings)


def run(outputs: list[Float32], settings: Float32) -> Float32:
    fused = pytest.importorskip("ddm_rt.kernels.projected_guidance.fused")
    given = [torch.from_numpy(output).to(DEVICE) for output in outputs]
    made: Float32 = fused.projected_guidance_fused(given, torch.from_numpy(settings).to(DEVICE)).cpu().numpy()
    return made


@pytest.mark.parametrize("branches", [2, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_kernel_equals_the_reference(
    shape: tuple[int, ...], branches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs, settings = inputs(shape, branches)
    # An element that nobody writes shows.
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, torch.nan))
    found, want = run(outputs, settings), projected_guidance(outputs, settings)
    assert (np.abs(found - want) <= GUIDED_STEP_FP32_REL * size(outputs, settings)).all()


def test_the_kernels_images_do_not_depend_on_the_batch() -> None:
    outputs, settings = inputs((3, 4, 32, 19), 3)
    together = run(outputs, settings)
    for i in range(3):
        alone = run([output[i : i + 1] for output in outputs], settings[i : i + 1])
        np.testing.assert_array_equal(alone[0], together[i])


def test_the_kernel_keeps_what_is_no_number_and_refuses_other_types() -> None:
    outputs, settings = inputs((2, 1, 2, 2), 2)
    outputs[1][0, 0, 0, 0] = np.nan
    found = run(outputs, settings)
    assert np.isnan(found[0]).all()
    assert np.isfinite(found[1]).all()
    with pytest.raises(ValueError, match=r"settings is torch\.float64 .*expected torch\.float32"):
        run(outputs, settings.astype(np.float64))
