"""Adaptive projected guidance: two or three branches as one output; needs numpy alone."""

from ddm_rt.kernels.projected_guidance.reference import projected_guidance_reference
from ddm_rt.kernels.projected_guidance.reference import projected_guidance_reference as projected_guidance

__all__ = ["projected_guidance", "projected_guidance_reference"]
