"""The model's own modules, with the weights of a bundle's graphs. In float32 they are the oracle of all others."""

from importlib.metadata import version

import diffusers
import torch
from torch import Tensor, nn

from ddm_rt.bundle import Bundle
from ddm_rt.config import Precision
from ddm_rt.engine.torch import weights
from ddm_rt.engine.torch.networks import DTYPES, Signature, precision_of
from ddm_rt.model.parts import Model, Part, parts
from ddm_rt.model.unet import keep_channels_last


class Eager:
    """`engine.torch.networks.Networks` of modules."""

    sizes: tuple[int, ...] | None = None

    def __init__(self, bundle: Bundle, model: Model) -> None:
        weight = next(model.unet.parameters())
        self.device = weight.device
        self.precision = precision_of(weight.dtype)
        self.parts = parts(model, bundle.config, ready=True)
        self.signatures = {name: signature(name, part) for name, part in self.parts.items()}
        self.cond = model.cond_specs(bundle.config.added, ready=True)
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


def signature(name: str, part: Part) -> Signature:
    """It computes in the dtype of its own networks. The conditioner, and one without any, computes in float32."""
    dtype = torch.float32 if name == "conditioner" or not part.own else next(part.own[0].parameters()).dtype
    return Signature(part.inputs, part.outputs, dtype)


def converted(model: Model, dtype: torch.dtype, device: torch.device) -> Model:
    """`model` on the device, computing in `dtype`; changed in place.

    In half precision convolutions' weights are channels-last, as their kernels want them. The conditioner, which runs
    once per prompt and code, stays float32, and so does in fp16 a VAE whose values leave its range (`force_upcast`).
    Networks of a bundle that is of half precision already stay as they are stored.
    """
    model.to(device)
    if dtype is torch.float32:
        return model
    stored = next(model.unet.parameters()).dtype
    for name, module in model.named_children():
        upcast = name == "vae" and dtype is torch.float16 and module.config.force_upcast  # type: ignore[union-attr]
        if name == "conditioner":
            module.float()
        elif not upcast:
            if stored is torch.float32:
                nn.Module.to(module, dtype)  # diffusers' own warns of modules that there are none of
            nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload]
    keep_channels_last(model.unet)
    return model
