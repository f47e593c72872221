"""A checkpoint's scheduler_config.json as our schedule and sampling defaults."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers

from ddm_rt.config import SamplerName, SamplingConfig, ScheduleConfig, parse
from ddm_rt.errors import BundleError

# diffusers' class -> the sampler that stands for it. All share the noise fields; where there is no equal, the nearest.
SAMPLERS: dict[str, SamplerName] = {
    "DDIMScheduler": SamplerName.DDIM,
    "PNDMScheduler": SamplerName.DDIM,
    "LCMScheduler": SamplerName.DDIM,
    "DDPMScheduler": SamplerName.DDPM,
    "EulerDiscreteScheduler": SamplerName.EULER,
    "EulerAncestralDiscreteScheduler": SamplerName.EULER,
    "HeunDiscreteScheduler": SamplerName.EULER,
    "LMSDiscreteScheduler": SamplerName.EULER,
    "KDPM2DiscreteScheduler": SamplerName.EULER,
    "KDPM2AncestralDiscreteScheduler": SamplerName.EULER,
    "DPMSolverMultistepScheduler": SamplerName.DPMPP_2M,
    "DPMSolverSinglestepScheduler": SamplerName.DPMPP_2M,
    "DEISMultistepScheduler": SamplerName.DPMPP_2M,
    "UniPCMultistepScheduler": SamplerName.DPMPP_2M,
}

# Fields that change the noise levels or the update, and the only value that ours have.
_ONLY: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_flow_sigmas": False,
    "use_lu_lambdas": False,
    "euler_at_final": False,
    "sigma_min": None,
    "sigma_max": None,
    "timestep_type": "discrete",
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
}
_SHARED = (
    *("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "prediction_type"),
    *("timestep_spacing", "steps_offset", "set_alpha_to_one"),
)


def read(tree: Mapping[str, Any], path: Path, guidance_scale: float) -> tuple[ScheduleConfig, SamplingConfig]:
    """What `tree`, the content of scheduler_config.json at `path`, says.

    A field that isn't there has the default of its class, as in diffusers. Raises BundleError naming the field.
    """
    name = tree.get("_class_name")
    if name not in SAMPLERS:
        raise BundleError(f"{path}: field _class_name: {name!r} is not supported; schedulers: {', '.join(SAMPLERS)}")
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    # A field that the class doesn't take has no effect in diffusers either: a folder keeps those of its last scheduler.
    values = {key: tree.get(key, default) for key, default in defaults.items()}
    for field, only in _ONLY.items():
        if values.get(field, only) != only:
            raise BundleError(
                f"{path}: field {field}: {values[field]!r} is not supported; expected {only!r} "
                "(the sampler itself can be chosen when images are made)"
            )
    schedule = parse(ScheduleConfig, {key: values[key] for key in _SHARED if key in values}, path)
    reach = values.get("clip_sample_range", 1.0)
    clip = (-reach, reach) if values.get("clip_sample", False) else None
    sampling = {
        "sampler": SAMPLERS[name],
        "guidance_scale": guidance_scale,
        "indicator_guidance_scale": None,
        "clip": clip,
    }
    return schedule, parse(SamplingConfig, sampling, path)
