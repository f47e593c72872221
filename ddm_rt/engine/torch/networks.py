"""What the engine computes with: a bundle's networks as callables of named tensors, eager or compiled."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ddm_rt.config import Precision
from ddm_rt.half import INPUTS

DTYPES = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}


def precision_of(dtype: torch.dtype) -> Precision:
    return next(precision for precision, each in DTYPES.items() if each is dtype)


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of one of them by name, in order, and what it computes in."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtype: torch.dtype

    def taken(self, name: str, value: Tensor) -> Tensor:
        """A value as the input of that name: in half precision latents are channels-last, as convolutions want them,
        and what sines are taken of stays float32.
        """
        if not value.is_floating_point() or name in INPUTS:
            return value
        layout = torch.channels_last if value.dim() == 4 and self.dtype is not torch.float32 else torch.preserve_format
        return value.to(self.dtype, memory_format=layout)


class Networks(Protocol):
    """By name: `conditioner`, `denoiser`, `decoder`, and `text_encoder` where the bundle takes prompts."""

    device: torch.device
    precision: Precision
    sizes: tuple[int, ...] | None  # of the batches that denoiser and decoder take, ascending; None: any
    signatures: dict[str, Signature]
    versions: dict[str, str]  # of what computes; the bits depend on it

    def __call__(self, name: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs. Raises DdmError for shapes that it doesn't take."""
