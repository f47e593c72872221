"""The settings of sampling that calibrations in tests are made for."""

from ddm_rt.config import SamplerName
from ddm_rt.sample.calibration.calibration import Settings

SETTINGS = Settings(
    sampler=SamplerName.DDIM,
    num_steps=4,
    indicator_guidance_scale=1.5,
    indicator_scale=1.0,
    eta=0.0,
    clip=(-1.0, 1.0),
    height=16,
    width=16,
    precision="fp32",
)
