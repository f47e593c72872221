"""The model's own modules, with the weights of a bundle's graphs. In float32 they are the oracle of all others."""

from importlib.metadata import version
from typing import TYPE_CHECKING

import diffusers
import torch
from torch import Tensor

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.torch import weights
from ddm_rt.engine.torch.half import converted
from ddm_rt.engine.torch.networks import DTYPES, Signature, precision_of
from ddm_rt.model.parts import Part, parts

if TYPE_CHECKING:
    from ddm_rt.model.parts import Model


class Eager:
    """`engine.torch.networks.Networks` of modules."""

    sizes = None

    def __init__(self, bundle: Bundle, model: "Model") -> None:
        weight = next(model.unet.parameters())
        self.device = weight.device
        self.precision = precision_of(weight.dtype)
        self.parts = parts(model, bundle.config)
        self.signatures = {name: signature(part) for name, part in self.parts.items()}
        self.versions = {"diffusers": diffusers.__version__}
        if not bundle.config.prompt_free:
            self.versions["transformers"] = version("transformers")

    @classmethod
    def load(cls, bundle: Bundle, precision: Precision, device: torch.device) -> "Eager":
        """Raises BundleError for weights that don't fit or aren't finite."""
        return cls(bundle, converted(weights.load(bundle), DTYPES[precision], device))

    def __call__(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        made: Tensor | tuple[Tensor, ...] = self.parts[name].module(*inputs)
        return made if isinstance(made, tuple) else (made,)


def signature(part: Part) -> Signature:
    """It computes in the dtype of its own networks; one without any, in float32."""
    dtype = next(part.own[0].parameters()).dtype if part.own else torch.float32
    return Signature(part.inputs, part.outputs, dtype)
