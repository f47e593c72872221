"""scheduler_config.json: the same noise levels and timesteps as diffusers' scheduler, or one clear error."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tolerances import SCHEDULE_REL, STEP_ABS, TIMESTEP_ABS

from ddm_rt.config import PredictionType, SamplerName
from ddm_rt.errors import DdmError
from ddm_rt.model.checkpoint.scheduler_config import SAMPLERS, SchedulerSettings, read_scheduler
from ddm_rt.schedule import Schedule, step_table

WHERE = Path("checkpoint/scheduler/scheduler_config.json")
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
# As the repository of Stable Diffusion 1.5 has it.
SD15 = NOISE | {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def read(**fields: Any) -> SchedulerSettings:
    return read_scheduler(fields, WHERE, 7.5)


def diffusers_scheduler(settings: dict[str, Any], num_steps: int) -> Any:
    scheduler = getattr(diffusers, settings["_class_name"]).from_config(settings)
    scheduler.set_timesteps(num_steps)
    return scheduler


def test_stable_diffusion_15s_pndm_is_sampled_with_ddim() -> None:
    found = read(**SD15)
    assert found.sampling.sampler is SamplerName.DDIM
    assert found.stands_for == "PNDMScheduler"
    assert found.sampling.guidance_scale == 7.5
    assert found.sampling.indicator_guidance_scale is None
    assert found.sampling.clip is None, "PNDM doesn't clip, whatever the file says"


@pytest.mark.parametrize("num_steps", [20, 50])
def test_pndms_noise_levels_timesteps_and_first_step(num_steps: int) -> None:
    """PNDM evaluates its second timestep twice; otherwise DDIM's timesteps are its own, and so is DDIM's first step."""
    scheduler = diffusers_scheduler(SD15, num_steps)
    schedule = Schedule.from_config(read(**SD15).schedule)
    np.testing.assert_allclose(schedule.alphas_cumprod, scheduler.alphas_cumprod.numpy(), rtol=SCHEDULE_REL)
    table = step_table(schedule, SamplerName.DDIM, num_steps)
    assert table.t.tolist() == list(dict.fromkeys(scheduler.timesteps.tolist()))
    generator = torch.Generator().manual_seed(0)
    x, out = torch.randn((2, 4, 4), generator=generator)
    want = scheduler.step(out, scheduler.timesteps[0], x).prev_sample
    x0 = table.a[0] * x + table.b[0] * out
    torch.testing.assert_close(
        (table.c[0] * x + table.d[0] * x0 + table.g[0] * out).float(), want, rtol=0, atol=STEP_ABS
    )


EQUAL: dict[str, dict[str, Any]] = {
    "ddim of 2.1": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
    "ddim trailing": {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"},
    "euler of XL": {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading", "steps_offset": 1},
    "euler": {"_class_name": "EulerDiscreteScheduler"},
    "euler karras": {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True},
    "ddpm": {"_class_name": "DDPMScheduler", "clip_sample": False},
    "dpm++": {"_class_name": "DPMSolverMultistepScheduler"},
    "dpm++ karras": {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True, "steps_offset": 1},
}


@pytest.mark.parametrize("case", EQUAL)
def test_schedulers_that_have_an_equal(case: str) -> None:
    settings = NOISE | EQUAL[case]
    found = read(**settings)
    assert found.stands_for is None
    table = step_table(Schedule.from_config(found.schedule), found.sampling.sampler, 20, clip=found.sampling.clip)
    want = diffusers_scheduler(settings, 20).timesteps.numpy()
    np.testing.assert_allclose(table.t, want, atol=TIMESTEP_ABS, rtol=0)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_class_is_read_as_diffusers_writes_it(name: str, tmp_path: Path) -> None:
    getattr(diffusers, name)(**NOISE, prediction_type="v_prediction").save_config(tmp_path)
    tree = json.loads((tmp_path / "scheduler_config.json").read_text())
    found = read_scheduler(tree, WHERE, 5.0)
    assert found.sampling.sampler is SAMPLERS[name]
    assert found.schedule.prediction_type is PredictionType.V_PREDICTION
    assert found.schedule.beta_schedule == "scaled_linear"
    assert found.stands_for in (None, name)


def test_a_missing_field_has_its_classs_default() -> None:
    """DDIM clips and ends at the clean end where the file doesn't say otherwise; PNDM does neither."""
    ddim = read(_class_name="DDIMScheduler")
    assert ddim.sampling.clip == (-1.0, 1.0)
    assert ddim.schedule.set_alpha_to_one
    assert ddim.schedule.beta_schedule == "linear"
    assert not read(_class_name="PNDMScheduler").schedule.set_alpha_to_one
    assert read(_class_name="DDIMScheduler", clip_sample_range=2).sampling.clip == (-2.0, 2.0)


@pytest.mark.parametrize(
    "fields",
    [
        {"_class_name": "EulerAncestralDiscreteScheduler"},
        {"_class_name": "LCMScheduler"},
        {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3},
        {"_class_name": "DDPMScheduler", "variance_type": "fixed_large"},
    ],
    ids=lambda fields: " ".join(map(str, fields.values())),
)
def test_a_nearest_sampler_is_told(fields: dict[str, Any]) -> None:
    assert read(**NOISE, **fields).stands_for == fields["_class_name"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "field _class_name: None is not supported; schedulers: DDIMScheduler, PNDMScheduler"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "'FlowMatchEulerDiscreteScheduler'"),
        ({"_class_name": ["DDIMScheduler"]}, "field _class_name"),
        ({"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True}, "field rescale_betas_zero_snr: True"),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1] * 1000}, "field trained_betas: [0.1, 0.1,"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "field beta_schedule"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "flow"}, "field prediction_type"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "linspace"}, "field timestep_spacing: 'linspace'"),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": "wide"}, "field clip_sample_range: 'wide'"),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 0}, "field num_train_timesteps"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "field use_flow_sigmas"),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "timestep_spacing": "leading"},
            "field use_karras_sigmas: not supported by euler with timestep_spacing 'leading'",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_what_is_not_supported(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(DdmError) as error:
        read(**fields)
    assert str(error.value).startswith(f"{WHERE}: ")
    assert said in str(error.value)
    assert len(str(error.value)) < 500


def test_null_is_false() -> None:
    assert read(_class_name="EulerDiscreteScheduler", use_karras_sigmas=None).stands_for is None


FIELDS = (
    *("num_train_timesteps", "beta_start", "beta_schedule", "prediction_type", "timestep_spacing", "steps_offset"),
    *("clip_sample", "clip_sample_range", "trained_betas", "use_karras_sigmas", "set_alpha_to_one", "solver_order"),
)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(("leading", "linspace")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@given(name=st.sampled_from(tuple(SAMPLERS)) | JSON, fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4))
def test_any_json_is_read_or_refused(name: Any, fields: dict[str, Any]) -> None:
    refusal = None
    try:
        found = read(_class_name=name, **fields)
    except DdmError as error:
        refusal = str(error)
    assert found.sampling.sampler is SAMPLERS[name] if refusal is None else refusal.startswith(f"{WHERE}: ")
