"""How large a request is, and whether a server takes one of that size at all."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ddm_rt.bundle import Bundle
from ddm_rt.errors import DdmError
from ddm_rt.sample.jobs import Shape, latent_shape
from ddm_rt.serve.settings import ServeSettings


class Extent(NamedTuple):
    n: int
    steps: int  # of each image
    shape: Shape


def extent(asked: Mapping[str, Any], deadline_s: float, bundle: Bundle, settings: ServeSettings) -> Extent:
    """Of a request with the arguments `asked` of `Pipeline.generate`. Raises DdmError naming what is out of bounds."""
    defaults = {
        "n": 1,
        "num_steps": bundle.config.sampling.num_steps,
        "height": bundle.config.image_size,
        "width": bundle.config.image_size,
    }
    given = {name: default if asked.get(name) is None else asked[name] for name, default in defaults.items()}
    for field, most in (("n", min(settings.max_images, settings.queue)), ("num_steps", settings.max_steps)):
        if not 1 <= given[field] <= most:
            raise DdmError(f"{field} is {given[field]}; expected 1 to {most}")
    if not deadline_s > 0:
        raise DdmError(f"deadline_s is {deadline_s}; expected more than 0 seconds")
    return Extent(given["n"], given["num_steps"], latent_shape(bundle, (given["height"], given["width"])))
