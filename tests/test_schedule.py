"""Schedule and step tables against diffusers' own schedulers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pairs import in_pairs
from tolerances import SCHEDULE_REL, STEP_ABS, TABLE_ABS, TIMESTEP_ABS, TRAJECTORY_REL

from ddm_rt.config import PredictionType, SamplerName, ScheduleConfig
from ddm_rt.errors import DdmError
from ddm_rt.kernels.guided_step import guided_step
from ddm_rt.kernels.philox import STEP_STREAM, normal
from ddm_rt.schedule import SPACINGS, Schedule, Spacing, StepTable, _linspace, step_table

Float32 = NDArray[np.float32]

SHAPE = (2, 3, 5, 4)
SEEDS = np.array([3, 2**63 + 1], np.uint64)
KINDS = tuple(PredictionType)
SAMPLERS = tuple(sampler for sampler in SamplerName if sampler is not SamplerName.LCM)  # that has tests/test_lcm.py
BETAS = ("linear", "scaled_linear", "squaredcos_cap_v2")
ORACLES = {
    SamplerName.DDPM: DDPMScheduler,
    SamplerName.DDIM: DDIMScheduler,
    SamplerName.EULER: EulerDiscreteScheduler,
    SamplerName.DPMPP_2M: DPMSolverMultistepScheduler,
}


def schedule_of(kind: PredictionType = PredictionType.EPSILON, betas: str = "linear") -> Schedule:
    return Schedule.from_config(ScheduleConfig(beta_schedule=betas, prediction_type=kind))


def oracle_of(sampler: SamplerName, schedule: Schedule, clip: float | None, spacing: Spacing | None) -> Any:
    config: dict[str, Any] = schedule.config.model_dump(mode="json", exclude_none=True)
    if sampler is not SamplerName.DDIM:
        del config["set_alpha_to_one"]
    if sampler in (SamplerName.DDPM, SamplerName.DDIM):
        config |= {"clip_sample": clip is not None, "clip_sample_range": clip or 1.0}
    if spacing == "karras":
        config["use_karras_sigmas"] = True
    elif spacing is not None:
        config["timestep_spacing"] = spacing
    return ORACLES[sampler](**config)


class ToyDenoiser:
    """The best denoiser of Gaussian data, disturbed a little: smooth in x and t, with every prediction type."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def __call__(self, x: Float32, t: float) -> Float32:
        grid = np.arange(self.schedule.config.num_train_timesteps)
        bar = np.interp(t, grid, self.schedule.alphas_cumprod)
        alpha, sigma = np.sqrt(bar), np.sqrt(1 - bar)
        x = x.astype(np.float64)
        mean, variance = 0.3, 0.5
        x0 = mean + alpha * variance * (x - alpha * mean) / (alpha**2 * variance + sigma**2)
        x0 = x0 + 0.2 * sigma * np.sin(3 * x + t / 200)
        eps = (x - alpha * x0) / sigma
        kind = self.schedule.config.prediction_type
        outputs = {"sample": x0, "epsilon": eps, "v_prediction": alpha * eps - sigma * x0}
        return outputs[kind.value].astype(np.float32)


def ours(table: StepTable, denoiser: ToyDenoiser, z: Float32) -> Iterator[Float32]:
    """States from the first to the sample; z [S + 1, *SHAPE] is `noise`, of which the step makes its own part."""
    x = z[-1] * np.float32(table.init_scale)
    x0 = x
    yield x
    rows = table.rows()
    for i in range(table.num_steps):
        out = denoiser(x, float(table.timesteps[i]))
        row = np.repeat(rows[i : i + 1], len(x), axis=0)
        x, x0 = guided_step([out], np.empty((len(x), 0), np.float32), row, x, x0, SEEDS, np.full(len(x), i))
        yield x


def step_oracle(oracle: Any, out: Float32, t: Any, state: torch.Tensor, z: Float32, eta: float) -> torch.Tensor:
    """One step of diffusers' scheduler with the noise z."""
    options: dict[str, Any] = {}
    if isinstance(oracle, DDIMScheduler):
        options = {"eta": eta, "variance_noise": torch.from_numpy(z) if eta else None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *_, **__: torch.from_numpy(z))
        return oracle.step(torch.from_numpy(out), t, state, **options).prev_sample


def theirs(oracle: Any, denoiser: ToyDenoiser, z: Float32, eta: float) -> Iterator[Float32]:
    """As `ours`; Euler's states are divided by √(s² + 1), which makes them the denoiser's input."""
    state = torch.from_numpy(z[-1]) * oracle.init_noise_sigma
    for i, t in enumerate(oracle.timesteps):
        x = oracle.scale_model_input(state, t).numpy()
        yield x
        state = step_oracle(oracle, denoiser(x, float(t)), t, state, z[i], eta)
    yield state.numpy()


def noise(num_steps: int) -> Float32:
    """The noise of every step, and of the first state behind them."""
    steps = [normal(SEEDS, i, STEP_STREAM, SHAPE[1:]) for i in range(num_steps)]
    return np.stack([*steps, normal(SEEDS, 0, 0, SHAPE[1:])])


def check_trajectory(
    schedule: Schedule,
    sampler: SamplerName,
    num_steps: int,
    *,
    spacing: Spacing | None = None,
    clip: float | None = None,
    eta: float = 0.0,
) -> None:
    table = step_table(
        schedule, sampler, num_steps, eta=eta, clip=None if clip is None else (-clip, clip), spacing=spacing
    )
    oracle = oracle_of(sampler, schedule, clip, spacing)
    oracle.set_timesteps(num_steps)
    np.testing.assert_allclose(table.t, oracle.timesteps.numpy(), rtol=0, atol=TIMESTEP_ABS)
    z = noise(num_steps)
    pairs = zip(ours(table, ToyDenoiser(schedule), z), theirs(oracle, ToyDenoiser(schedule), z, eta), strict=True)
    worst = [(np.abs(a - b).max(), np.abs(b).max()) for a, b in pairs]
    scale = max(size for _, size in worst)
    assert max(error for error, _ in worst) <= TRAJECTORY_REL * scale


def check_steps(schedule: Schedule, sampler: SamplerName, num_steps: int, clip: float | None = None) -> None:
    """Every step by itself, from our state."""
    denoiser = ToyDenoiser(schedule)
    table = step_table(schedule, sampler, num_steps, clip=None if clip is None else (-clip, clip))
    oracle = oracle_of(sampler, schedule, clip, None)
    oracle.set_timesteps(num_steps)
    if sampler is SamplerName.DDPM:  # float32 loses 1.5e-5 in its 1 - ᾱ/ᾱ' for neighbouring levels
        oracle.alphas_cumprod = oracle.alphas_cumprod.double()
    z = noise(num_steps)
    states = list(ours(table, denoiser, z))
    for i, t in enumerate(oracle.timesteps):
        up, down = (
            np.sqrt(oracle.sigmas[k].double().numpy() ** 2 + 1) if sampler is SamplerName.EULER else 1.0
            for k in (i, i + 1)
        )
        state = torch.from_numpy(states[i] * np.float32(up))
        x = oracle.scale_model_input(state, t).numpy()
        found = step_oracle(oracle, denoiser(x, float(t)), t, state, z[i], eta=0.0).numpy() / down
        assert np.abs(found - states[i + 1]).max() <= STEP_ABS, f"step {i}"


CASES = [
    *((SamplerName.DDPM, None, clip, 0.0) for clip in (None, 1.0)),
    *((SamplerName.DDIM, None, clip, eta) for clip in (None, 1.0) for eta in (0.0, 0.5, 1.0)),
    (SamplerName.DDIM, "trailing", 1.0, 0.0),
    (SamplerName.DDPM, "trailing", 1.0, 0.0),
    *((SamplerName.EULER, spacing, None, 0.0) for spacing in ("linspace", "trailing", "karras")),
    *((SamplerName.DPMPP_2M, spacing, None, 0.0) for spacing in ("linspace", "trailing", "karras")),
]


@pytest.mark.parametrize(("case", "kind", "num_steps"), in_pairs(CASES, KINDS, (1, 2, 4, 8, 25, 50)))
def test_trajectory_equals_diffusers(
    case: tuple[SamplerName, Spacing | None, float | None, float], kind: PredictionType, num_steps: int
) -> None:
    sampler, spacing, clip, eta = case
    check_trajectory(schedule_of(kind), sampler, num_steps, spacing=spacing, clip=clip, eta=eta)


# What the scheduler_config.json of a checkpoint says (SD 1.5, SD 2.1, SDXL), and each of its fields by itself.
SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "sd15": {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False},
    "sd21": {
        "timestep_spacing": "leading",
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "prediction_type": "v_prediction",
    },
    "sdxl": {"timestep_spacing": "leading", "steps_offset": 1},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "trailing, first level": {"timestep_spacing": "trailing", "set_alpha_to_one": False},
    "first level": {"timestep_spacing": "leading", "set_alpha_to_one": False},  # DDIM's last step changes nothing
    "offset, sampler's spacing": {"steps_offset": 1},
}


SLOW = pytest.mark.slow(reason="333 steps of the other checkpoints are quick")
# 333 doesn't divide 1000; the last step of 600, with an offset, leads to t = 0.
CHECKPOINT_STEPS = [
    pytest.param(
        *(name, sampler, eta, num_steps),
        marks=[SLOW] * (num_steps == 333 and name not in ("sd15", "sdxl", "trailing, first level")),
    )
    for name, fields in CHECKPOINTS.items()
    for sampler in SAMPLERS
    for eta in ((0.0, 1.0) if sampler is SamplerName.DDIM else (0.0,))
    for num_steps in (1, 2, 4, 20, 50, 333, *([600] * (name == "sdxl" and sampler is SamplerName.DDIM)))
    # With "trailing" and 333, diffusers' DDIM leads a step to another level than the next one starts at.
    if not (num_steps == 333 and sampler is SamplerName.DDIM and fields.get("timestep_spacing") == "trailing")
]


def checkpoint_schedule(name: str) -> Schedule:
    return Schedule.from_config(ScheduleConfig(**SD, **CHECKPOINTS[name]))


@pytest.mark.parametrize(("name", "sampler", "eta", "num_steps"), CHECKPOINT_STEPS)
def test_trajectory_of_a_checkpoint_equals_diffusers(
    name: str, sampler: SamplerName, eta: float, num_steps: int
) -> None:
    check_trajectory(checkpoint_schedule(name), sampler, num_steps, eta=eta)


@pytest.mark.parametrize("num_steps", [4, 20, 50])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_each_step_of_a_checkpoint_equals_diffusers(name: str, sampler: SamplerName, num_steps: int) -> None:
    check_steps(checkpoint_schedule(name), sampler, num_steps)


def test_a_spacing_that_the_sampler_does_not_take_gives_way_to_its_own() -> None:
    schedule = Schedule.from_config(ScheduleConfig(timestep_spacing="linspace"))
    own = step_table(schedule_of(), SamplerName.DDIM, 10)
    np.testing.assert_array_equal(step_table(schedule, SamplerName.DDIM, 10).t, own.t)


def test_an_explicit_spacing_overrides_the_schedule() -> None:
    table = step_table(checkpoint_schedule("sdxl"), SamplerName.EULER, 10, spacing="trailing")
    assert table.t[0] == 999
    assert table.init_scale < 1  # as "leading" has it, 1


# With the cosine schedule σ/α reaches 2e4: Euler's own units, in which diffusers computes in float32, and
# ε-prediction without a clip have no five digits left there.
STEP_CASES = [
    *((betas, sampler, None) for betas in ("linear", "scaled_linear") for sampler in SAMPLERS),
    *((betas, sampler, 1.0) for betas in BETAS for sampler in (SamplerName.DDPM, SamplerName.DDIM)),
]


@pytest.mark.parametrize(("case", "kind", "num_steps"), in_pairs(STEP_CASES, KINDS, (4, 25, 50)))
def test_each_step_equals_diffusers(
    case: tuple[str, SamplerName, float | None], kind: PredictionType, num_steps: int
) -> None:
    betas, sampler, clip = case
    check_steps(schedule_of(kind, betas), sampler, num_steps, clip)


@pytest.mark.parametrize("betas", BETAS)
def test_every_timestep_equals_diffusers(betas: str) -> None:
    """The first included: with the cosine schedule, a rounding decides whether DPM-Solver++ starts at 999 or 998."""
    for timesteps in (100, 500, 1000):
        schedule = Schedule.from_config(ScheduleConfig(beta_schedule=betas, num_train_timesteps=timesteps))
        for sampler in SAMPLERS:
            for spacing in SPACINGS[sampler]:
                for num_steps in (1, 2, 3, 4, 8, 12, 25, 50, 83):
                    oracle = oracle_of(sampler, schedule, None, spacing)
                    oracle.set_timesteps(num_steps)
                    found = step_table(schedule, sampler, num_steps, spacing=spacing).t
                    atol = TIMESTEP_ABS if sampler is SamplerName.EULER else 0
                    case = f"{sampler}, {spacing}, {num_steps} of {timesteps}"
                    np.testing.assert_allclose(found, oracle.timesteps.numpy(), rtol=0, atol=atol, err_msg=case)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("n", [10, 1000])
def test_levels_equal_diffusers(betas: str, n: int) -> None:
    config = ScheduleConfig(num_train_timesteps=n, beta_schedule=betas)
    oracle = DDPMScheduler(num_train_timesteps=n, beta_schedule=betas)
    levels = Schedule.from_config(config).alphas_cumprod
    assert levels.dtype == np.float64
    np.testing.assert_allclose(levels, oracle.alphas_cumprod.double().numpy(), rtol=SCHEDULE_REL, atol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_table_ends_clean(sampler: SamplerName) -> None:
    for spacing in SPACINGS[sampler]:
        for num_steps in (1, 3, 7, 25, 333):
            table = step_table(schedule_of(), sampler, num_steps, spacing=spacing)
            assert table.rows().shape == (num_steps, 9)
            assert table.rows().dtype == table.timesteps.dtype == np.float32
            assert np.isfinite(table.rows()[:, :7]).all()
            assert np.isinf(table.rows()[:, 7:]).all()
            assert (np.diff(table.t) < 0).all() or spacing == "karras"
            last = (table.c[-1], table.d[-1], table.e[-1], table.g[-1], table.f[-1])
            np.testing.assert_allclose(last, (0, 1, 0, 0, 0), rtol=0, atol=TABLE_ABS)
            assert table.e[0] == 0


@settings(max_examples=60, deadline=None)
@given(
    sampler=st.sampled_from(SAMPLERS),
    kind=st.sampled_from(PredictionType),
    num_steps=st.integers(1, 100),
    data=st.data(),
)
def test_step_of_a_perfect_denoiser_stays_on_the_path(
    sampler: SamplerName, kind: PredictionType, num_steps: int, data: st.DataObject
) -> None:
    """With one x0 and one ε, a row takes α·x0 + σ·ε to α'·x0 + σ'·ε (but for the noise that it swaps in)."""
    spacing = data.draw(st.sampled_from(SPACINGS[sampler]))
    eta = data.draw(st.sampled_from([0.0, 0.3, 1.0])) if sampler is SamplerName.DDIM else 0.0
    table = step_table(schedule_of(kind), sampler, num_steps, eta=eta, spacing=spacing)
    # a and b of the ε-prediction table give the levels.
    eps_table = step_table(schedule_of(), sampler, num_steps, eta=eta, spacing=spacing)
    alpha = np.append(1 / eps_table.a, 1.0)
    sigma = np.append(-eps_table.b / eps_table.a, 0.0)
    x0, eps = 0.7, -1.3
    out = {"epsilon": eps, "sample": x0, "v_prediction": alpha[:-1] * eps - sigma[:-1] * x0}[kind.value]
    x = alpha[:-1] * x0 + sigma[:-1] * eps
    np.testing.assert_allclose(table.a * x + table.b * out, x0, rtol=0, atol=TABLE_ABS)
    signal = table.c * x + table.d * x0 + table.e * x0 + table.g * out
    kept = (signal - alpha[1:] * x0) / eps
    np.testing.assert_allclose(kept**2 + table.f**2, sigma[1:] ** 2, rtol=0, atol=TABLE_ABS)


@pytest.mark.parametrize(("start", "end"), [(0.0001, 0.02), (0.00085**0.5, 0.012**0.5), (0.1, 0.7), (0.3, 0.9)])
@pytest.mark.parametrize("n", [2, 3, 10, 99, 100, 1000, 1001])
def test_betas_lie_where_torch_puts_them(start: float, end: float, n: int) -> None:
    """To the bit, or a checkpoint's levels are not those that it was trained with."""
    assert _linspace(start, end, n).tobytes() == torch.linspace(start, end, n).numpy().tobytes()


def test_vanishing_levels_are_refused() -> None:
    with pytest.raises(DdmError, match="alphas_cumprod"):
        Schedule.from_config(ScheduleConfig(num_train_timesteps=50_000))


@pytest.mark.parametrize(
    ("sampler", "options", "field"),
    [
        (SamplerName.DDIM, {"num_steps": 0}, "num_steps"),
        (SamplerName.DDIM, {"num_steps": -3}, "num_steps"),
        (SamplerName.DDIM, {"num_steps": 1001}, "num_steps"),
        (SamplerName.DPMPP_2M, {"num_steps": 1000}, "num_steps"),
        (SamplerName.DDIM, {"eta": 1.5}, "eta"),
        (SamplerName.DDIM, {"eta": float("nan")}, "eta"),
        (SamplerName.EULER, {"eta": 0.5}, "eta"),
        (SamplerName.DDIM, {"clip": (1.0, -1.0)}, "clip"),
        (SamplerName.DDIM, {"clip": (0.5, 0.5)}, "clip"),
        (SamplerName.DDIM, {"spacing": "karras"}, "spacing"),
    ],
)
def test_bad_arguments_are_named(sampler: SamplerName, options: dict[str, Any], field: str) -> None:
    with pytest.raises(DdmError, match=field):
        step_table(schedule_of(), sampler, **({"num_steps": 10} | options))


@pytest.mark.parametrize("sampler", SamplerName)
def test_an_offset_beyond_the_last_timestep_is_refused(sampler: SamplerName) -> None:
    with pytest.raises(DdmError, match="num_steps is 1000"):
        step_table(checkpoint_schedule("sdxl"), sampler, 1000)
