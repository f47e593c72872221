"""A checkpoint's scheduler_config.json as our schedule and sampling defaults."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers

from ddm_rt.config import SamplerName, SamplingConfig, ScheduleConfig, parse
from ddm_rt.errors import BundleError
from ddm_rt.schedule import SPACINGS

# diffusers' class -> the sampler that stands for it: its equal, or the one of the same family that solves the same
# equation over the same timesteps. PNDM is DDIM's update on an extrapolated ε, its first step DDIM's own.
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
# Classes that have an equal, and the fields that make it one.
_EQUAL: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {},
    "DDPMScheduler": {"variance_type": "fixed_small"},
    "EulerDiscreteScheduler": {},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "lambda_min_clipped": -float("inf"),
        "variance_type": None,
    },
}
# Fields that change the noise levels or x0 whatever the sampler, and the only value that ours have.
_ONLY: dict[str, Any] = {
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "thresholding": False,
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


@dataclass(frozen=True)
class SchedulerSettings:
    """What a scheduler_config.json comes to."""

    schedule: ScheduleConfig
    sampling: SamplingConfig
    stands_for: str | None  # diffusers' class, where the sampler is its nearest but not its equal


def read_scheduler(tree: Mapping[str, Any], path: Path, guidance_scale: float) -> SchedulerSettings:
    """What `tree`, the content of scheduler_config.json at `path`, says.

    A field that isn't there has the default of its class, as in diffusers. Raises DdmError naming the field.
    """
    name = tree.get("_class_name")
    if not isinstance(name, str) or name not in SAMPLERS:
        raise BundleError(
            f"{path}: field _class_name: {name!r:.80} is not supported; schedulers: {', '.join(SAMPLERS)}"
        )
    sampler = SAMPLERS[name]
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    defaults = {key: p.default for key, p in parameters.items() if p.default is not inspect.Parameter.empty}
    # A field that the class doesn't take has no effect in diffusers either: a folder keeps those of its last scheduler.
    values = {key: tree.get(key, default) for key, default in defaults.items()}
    for field, only in _ONLY.items():
        if (values.get(field, only) or None) != (only or None):  # null is false to diffusers
            raise BundleError(f"{path}: field {field}: {values[field]!r:.80} is not supported; expected {only!r}")
    shared = {key: values[key] for key in _SHARED if key in values} | _spacing(values, sampler, path)
    sampling = {
        "sampler": sampler,
        "guidance_scale": guidance_scale,
        "indicator_guidance_scale": None,
        "clip": _clip(values, path),
    }
    equal = name in _EQUAL and all(values.get(field, only) == only for field, only in _EQUAL[name].items())
    return SchedulerSettings(
        schedule=parse(ScheduleConfig, shared, path),
        sampling=parse(SamplingConfig, sampling, path),
        stands_for=None if equal else name,
    )


def _spacing(values: Mapping[str, Any], sampler: SamplerName, path: Path) -> dict[str, Any]:
    """The timesteps, which must be among those that the sampler takes: another choice would be another schedule."""
    spacing = values.get("timestep_spacing")
    if values.get("use_karras_sigmas"):
        # Euler's levels run between the first and the last timestep that the spacing gives, DPM-Solver++'s between all.
        own = sampler is SamplerName.DPMPP_2M or spacing in (None, SPACINGS[sampler][0])
        if not own or "karras" not in SPACINGS[sampler]:
            raise BundleError(
                f"{path}: field use_karras_sigmas: not supported by {sampler} with timestep_spacing {spacing!r:.80}; "
                "expected false"
            )
        return {"timestep_spacing": "karras"}
    if spacing is not None and spacing not in SPACINGS[sampler]:
        raise BundleError(
            f"{path}: field timestep_spacing: {spacing!r:.80} is not supported by {sampler}; "
            f"expected one of: {', '.join(SPACINGS[sampler])}"
        )
    return {}


def _clip(values: Mapping[str, Any], path: Path) -> tuple[float, float] | None:
    reach = values.get("clip_sample_range", 1.0)
    if not values.get("clip_sample", False):
        return None
    if isinstance(reach, bool) or not isinstance(reach, int | float) or not reach > 0:
        raise BundleError(f"{path}: field clip_sample_range: {reach!r:.80}; expected a positive number")
    return (-float(reach), float(reach))
