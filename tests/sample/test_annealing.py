"""CADS on one prompt's tokens, against its formula in torch, which is how others have it."""

import numpy as np
import pytest
import torch
from tolerances import STEP_ABS

from ddm_rt.sample.loop.annealing import NoiseAt, kept_tokens, noised
from ddm_rt.sample.loop.noise import Stream, normal

TOKENS = np.random.default_rng(3).normal(0.4, 2.0, (1, 7, 24)).astype(np.float32)


@pytest.mark.parametrize(("t", "kept"), [(0.0, 1.0), (0.6, 1.0), (0.75, 0.5), (0.9, 0.0), (0.999, 0.0)])
def test_noise_fades_between_its_two_times(t: float, kept: float) -> None:
    assert kept_tokens(np.array([t]), (0.6, 0.9)) == pytest.approx(kept, abs=1e-12)
    assert kept_tokens(np.array([t]), None) == 1


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9])
def test_tokens_are_those_of_the_formula(kept: float) -> None:
    found = noised(TOKENS, NoiseAt(seed=11, step=4, scale=0.25, kept=kept))
    y = torch.from_numpy(TOKENS).double()
    n = torch.from_numpy(normal(np.array([11], np.uint64), 4, Stream.TOKENS, (7, 24))).double()
    mixed = kept**0.5 * y + 0.25 * (1 - kept) ** 0.5 * n
    expected = (mixed - mixed.mean()) / mixed.std() * y.std() + y.mean()
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=STEP_ABS)
    assert found.mean() == pytest.approx(TOKENS.mean(), abs=1e-5)
    assert found.std() == pytest.approx(TOKENS.std(), rel=1e-5)


def test_each_seed_and_step_has_noise_of_its_own() -> None:
    made = [noised(TOKENS, NoiseAt(seed, step, 0.25, 0.5)) for seed in (0, 1) for step in (0, 1)]
    assert len({tokens.tobytes() for tokens in made}) == 4
    again = noised(TOKENS, NoiseAt(1, 1, 0.25, 0.5))
    assert again.tobytes() == made[-1].tobytes()


def test_tokens_that_leave_nothing_to_scale_stay() -> None:
    alike = np.zeros((1, 1, 1), np.float32)
    assert noised(alike, NoiseAt(0, 0, 0.25, 0.5)).tobytes() == alike.tobytes()
