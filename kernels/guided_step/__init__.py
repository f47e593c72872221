"""Guidance and step-table update in one op; needs numpy alone."""

from ddm_rt.kernels.guided_step.reference import guided_step_reference
from ddm_rt.kernels.guided_step.reference import guided_step_reference as guided_step

__all__ = ["guided_step", "guided_step_reference"]
