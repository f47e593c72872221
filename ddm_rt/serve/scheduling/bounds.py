"""Whether a server takes a request of some size at all."""

from ddm_rt.errors import DdmError
from ddm_rt.sample.request import Extent
from ddm_rt.serve.scheduling.settings import ServeSettings


def check(extent: Extent, deadline_s: float, settings: ServeSettings) -> Extent:
    """The same extent. Raises DdmError naming what is out of bounds."""
    most_images = min(settings.max_images, settings.queue)
    for field, given, most in (("n", extent.n, most_images), ("num_steps", extent.steps, settings.max_steps)):
        if not 1 <= given <= most:
            raise DdmError(f"{field} is {given}; expected 1 to {most}")
    if not deadline_s > 0:
        raise DdmError(f"deadline_s is {deadline_s}; expected more than 0 seconds")
    return extent
