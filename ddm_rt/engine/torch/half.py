"""A float32 model in half precision, and on its device."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ddm_rt.model.parts import Model


def converted(model: "Model", dtype: torch.dtype, device: torch.device) -> "Model":
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
    for name, module in model.unet.named_modules():
        if name.endswith("proj_out") and isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(_channels_last)  # diffusers hands attention's output over the other way
    return model


def _channels_last(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (given[0].contiguous(memory_format=torch.channels_last),)
