"""Weights from a safetensors file into a module, every tensor checked."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddm_rt.errors import BundleError


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a finished run. Raises BundleError naming the file, and the first tensor that isn't finite."""
    if not path.is_file():
        raise BundleError(f"{path}: missing; a finished run has it")
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path}: not a readable safetensors file ({error})") from error
    for name, tensor in found.items():
        if not torch.isfinite(tensor).all():
            raise BundleError(f"{path}: tensor {name} has non-finite values")
    return found


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from `path`, which must hold its state_dict and nothing else.

    Raises BundleError as `read_weights`, and naming the first tensor that is missing, foreign, or of another shape or
    dtype. An integer buffer (the code tree) must be equal to what codes.json made it.
    """
    found, expected = read_weights(path), module.state_dict()
    for name in expected.keys() - found.keys():
        raise BundleError(f"{path}: tensor {name} is missing; the configuration beside it needs it")
    for name in found.keys() - expected.keys():
        raise BundleError(f"{path}: tensor {name} is foreign; the configuration beside it has no such tensor")
    for name, want in expected.items():
        tensor = found[name]
        if tensor.shape != want.shape or tensor.dtype != want.dtype:
            raise BundleError(
                f"{path}: tensor {name} is {tensor.dtype} {list(tensor.shape)}; "
                f"expected {want.dtype} {list(want.shape)}"
            )
        if not tensor.is_floating_point() and not torch.equal(tensor, want):
            raise BundleError(f"{path}: tensor {name} differs from what codes.json says")
    module.load_state_dict(found)
