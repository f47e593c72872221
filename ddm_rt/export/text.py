"""What a bundle says about prompts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ddm_rt.runtime import TensorSpec, TextSpec


@dataclass(frozen=True)
class Text:
    """Nothing, for models that take no prompts."""

    specs: tuple[TextSpec, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)  # path in the bundle -> content
    added: tuple[TensorSpec, ...] = ()  # what the conditioner takes besides text and code
    empty_negative_is_zero: bool = False
