"""LCM's rows and a student's jumps against diffusers' schedulers."""

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from test_schedule import KINDS, SEEDS, SHAPE, ToyDenoiser, noise, ours, schedule_of
from tolerances import STEP_ABS, STEP_ROUNDINGS, TABLE_ABS, TRAJECTORY_REL

from ddm_rt.config import PredictionType, SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.kernels.philox import normal
from ddm_rt.schedule import LCM_GRID, Schedule, boundary, jumps, step_table

CLIPS = (None, 1.0)
NO_SCALES = np.empty((len(SEEDS), 0), np.float32)


def oracle_of(schedule: Schedule, clip: float | None) -> LCMScheduler:
    config = schedule.config.model_dump(mode="json", include={"beta_schedule", "beta_start", "beta_end"})
    kind = schedule.config.prediction_type.value
    return LCMScheduler(**config, prediction_type=kind, clip_sample=clip is not None, clip_sample_range=clip or 1.0)


@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 8, 25, 50])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_trajectory_equal_diffusers(
    kind: PredictionType, clip: float | None, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule = schedule_of(kind, "scaled_linear")
    table = step_table(schedule, SamplerName.LCM, num_steps, clip=None if clip is None else (-clip, clip))
    oracle = oracle_of(schedule, clip)
    oracle.set_timesteps(num_steps)
    np.testing.assert_array_equal(table.t, oracle.timesteps.numpy())
    denoiser, z = ToyDenoiser(schedule), noise(num_steps)
    states = list(ours(table, denoiser, z))
    theirs = torch.from_numpy(z[-1])
    for i, t in enumerate(oracle.timesteps):
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *_, i=i, **__: torch.from_numpy(z[i])
        )
        for state, limit in ((torch.from_numpy(states[i]), STEP_ABS), (theirs, None)):
            oracle._step_index = i
            out = torch.from_numpy(denoiser(state.numpy(), float(t)))
            found = oracle.step(out, t, state).prev_sample
            if limit is not None:
                largest = np.abs(table.a[i] * states[i]).max()  # of the terms of x0, whose difference it is
                limit = max(limit, STEP_ROUNDINGS * float(np.finfo(np.float32).eps) * largest)
                assert np.abs(found.numpy() - states[i + 1]).max() <= limit, f"step {i}"
        theirs = found
    scale = max(float(np.abs(state).max()) for state in states)
    assert np.abs(theirs.numpy() - states[-1]).max() <= TRAJECTORY_REL * scale


def test_the_consistency_function_starts_at_the_identity() -> None:
    skip, out = boundary(np.array([0.0, 19.0, 999.0]))
    assert (skip[0], out[0]) == (1, 0)
    assert (skip[1:] < 1e-5).all()
    np.testing.assert_allclose(skip + out**2, 1, rtol=0, atol=TABLE_ABS)


def test_more_steps_than_its_grid_has_are_refused() -> None:
    with pytest.raises(DdmError, match=f"num_steps is {LCM_GRID + 1}; lcm takes at most {LCM_GRID}"):
        step_table(schedule_of(), SamplerName.LCM, LCM_GRID + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_jumps_between_neighbours_are_ddims_steps_and_none_keeps_what_the_clip_cuts_off(kind: PredictionType) -> None:
    schedule = schedule_of(kind)
    table = step_table(schedule, SamplerName.DDIM, 10)
    x, out = (normal(SEEDS, i, 0, SHAPE[1:]) for i in (0, 1))
    for clip in (None, (-0.2, 0.2)):
        rows = jumps(schedule, table.t, np.append(table.t[1:], -1), clip)
        for row, ddim in zip(rows, table.rows(), strict=True):
            found, x0 = guided_step([out], NO_SCALES, np.stack([row, row]), x, x)
            if clip is None:
                expected, _ = guided_step([out], NO_SCALES, np.stack([ddim, ddim]), x, x)
                assert np.abs(found - expected).max() <= STEP_ABS * np.abs(x0).max()
            else:
                assert np.abs(x0).max() <= np.float32(0.2)
                assert np.abs(found).max() <= np.abs(row[2] * x).max() + row[3] * 0.2 + STEP_ABS


@pytest.mark.parametrize("kind", KINDS)
def test_a_jump_is_as_good_as_the_steps_in_between_for_one_x0_and_noise(kind: PredictionType) -> None:
    schedule = schedule_of(kind)
    rng = np.random.default_rng(0)
    x0, eps = rng.uniform(-1, 1, SHAPE), rng.standard_normal(SHAPE)
    levels = np.append(schedule.alphas_cumprod, 1.0)
    for t, to in ((999, 499), (700, 3), (40, -1)):
        (alpha, sigma), (alpha_to, sigma_to) = ((np.sqrt(levels[i]), np.sqrt(1 - levels[i])) for i in (t, to))
        out = {"epsilon": eps, "sample": x0, "v_prediction": alpha * eps - sigma * x0}[kind.value].astype(np.float32)
        rows = np.repeat(jumps(schedule, np.array([float(t)]), np.array([float(to)])), len(x0), axis=0)
        x = (alpha * x0 + sigma * eps).astype(np.float32)
        found, _ = guided_step([out], NO_SCALES, rows, x, x, SEEDS, np.zeros(len(x0), int))
        # In float32, ε-prediction has 1/α of rounding in its x0.
        np.testing.assert_allclose(found, alpha_to * x0 + sigma_to * eps, rtol=0, atol=STEP_ABS / alpha)
