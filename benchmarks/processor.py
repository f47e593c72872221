"""Which processor a figure was measured on."""

from ddm_rt.engine.machine import processor

__all__ = ["processor"]
