"""A float32 model in half precision, and on its device."""

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from ddm_rt.model.parts import Model


def converted(model: "Model", dtype: torch.dtype, device: torch.device) -> "Model":
    """`model` on the device, computing in `dtype`; changed in place.

    In half precision convolutions' weights are channels-last, as their kernels want them. The conditioner, which runs
    once per prompt and code, stays float32, and so does in fp16 a VAE whose values leave its range (`force_upcast`).
    """
    model.to(device)
    if dtype is torch.float32:
        return model
    for name, module in model.named_children():
        upcast = name == "vae" and dtype is torch.float16 and module.config.force_upcast  # type: ignore[union-attr]
        if name != "conditioner" and not upcast:
            nn.Module.to(module, dtype)  # diffusers' own warns of modules that there are none of
            nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
