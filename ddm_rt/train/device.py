"""The device that training computes on, and the dtypes of half precision."""

import torch

from ddm_rt.config import Precision

CPU = torch.device("cpu")
HALF = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}


def chosen() -> torch.device:
    """The first CUDA device where torch finds one, else the CPU."""
    return torch.device("cuda") if torch.cuda.is_available() else CPU


def name(device: torch.device) -> str:
    """For provenance: "cpu", or the card's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
