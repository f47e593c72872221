"""A run's model, whole: base checkpoint, what training changed, and low-rank factors folded in."""

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ddm_rt.config import Family, Frozen, ModelConfig, RunConfig, parse_json
from ddm_rt.errors import BundleError
from ddm_rt.files import read
from ddm_rt.model.indicator import as_stored
from ddm_rt.model.unet import DDM
from ddm_rt.runtime import Codes, SharedOf

if TYPE_CHECKING:
    from ddm_rt.model.latent import LatentDDM

WEIGHTS = "weights.safetensors"
_LORA = "lora."

M = TypeVar("M", bound=Frozen)


def read_file(model: type[M], path: Path, rest: str = "a finished run has it") -> M:
    """A JSON file of a run. Raises BundleError where it can't be read, and DdmError naming a field that is wrong."""
    return parse_json(model, read(path, rest, BundleError), path)


def build(config: ModelConfig, latent_shape: tuple[int, int, int], shared_of: SharedOf) -> "DDM | LatentDDM":
    """The family's module with random weights."""
    if config.family is Family.PIXEL:
        return DDM(config, latent_shape, shared_of)
    from ddm_rt.model.latent import LatentDDM  # with transformers, which pixels don't need

    return LatentDDM(config, shared_of)


def assemble(
    run: Path, config: RunConfig, codes: Codes, dtype: torch.dtype | None = torch.float32
) -> "DDM | LatentDDM":
    """The model of `run` in `dtype`, everything merged, in eval mode and without gradients.

    None leaves a checkpoint's tensors as they are stored, and mapped from its files; what training changed is float32.

    Raises BundleError for missing, foreign, malformed or non-finite parts, and for a base that has changed.
    """
    if config.model.family is Family.PIXEL:
        model = build(config.model, config.model.latent_shape(config.data), codes.shared_of)
        load_weights(model, run / WEIGHTS)
        model.to(dtype or torch.float32)
    else:
        model = _assemble_latent(run, config, codes, dtype)
    return model.eval().requires_grad_(False)


def _assemble_latent(run: Path, config: RunConfig, codes: Codes, dtype: torch.dtype | None) -> "LatentDDM":
    from ddm_rt.model.checkpoint.folder import load_base, read_checkpoint
    from ddm_rt.model.latent import LatentDDM

    if config.base is None:
        raise BundleError(f"{run / 'config.json'}: field base: missing; family {config.model.family} needs it")
    checkpoint = read_checkpoint(run / config.base.path, config.base.variant)
    if checkpoint.base.sha256 != config.base.sha256:
        raise BundleError(
            f"{checkpoint.path}: the base checkpoint has changed since {run / 'config.json'} was written; "
            f"its sha256 is {checkpoint.base.sha256}, expected {config.base.sha256}"
        )
    # The checkpoint's own word on its networks: it has been tried, and the sha256 covers it.
    networks = {name: getattr(checkpoint.model, name) for name in ("family", "patch", "unet", "vae", "text_encoders")}
    with torch.device("meta"):
        model = LatentDDM(config.model.model_copy(update=networks), codes.shared_of)
    load_base(model, checkpoint, dtype)
    # An imported run has no weights of its own; one with codes has at least the indicator's.
    if codes.num_codes or (run / WEIGHTS).exists():
        _apply(model, run / WEIGHTS, config, codes, dtype or torch.float32)
    return model


def _apply(model: "LatentDDM", path: Path, config: RunConfig, codes: Codes, dtype: torch.dtype) -> None:
    """Put the trained tensors of `path` into `model` and add the low-rank factors to its layers."""
    expected = model.state_dict()
    trained: dict[str, Tensor] = {}
    factors: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_weights(path).items():
        if name.startswith(_LORA):
            module, _, factor = name.removeprefix(_LORA).rpartition(".")
            factors.setdefault(module, {})[factor] = tensor
            continue
        if name not in expected:
            raise BundleError(f"{path}: tensor {name} is foreign; the configuration beside it has no such tensor")
        if tensor.shape != expected[name].shape:
            raise BundleError(f"{path}: tensor {name} is {list(tensor.shape)}; expected {list(expected[name].shape)}")
        trained[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    for name, tensor in expected.items():
        if tensor.is_meta and name not in trained:
            raise BundleError(f"{path}: tensor {name} is missing; the configuration beside it needs it")
    if "conditioner.top_of" in expected and trained["conditioner.top_of"].tolist() != as_stored(codes.shared_of):
        raise BundleError(f"{path}: tensor conditioner.top_of differs from what codes.json says")
    for module, pair in factors.items():
        name = f"{module}.weight"
        if pair.keys() != {"A", "B"} or name not in expected:
            raise BundleError(f"{path}: tensor {_LORA}{module}.{min(pair)} has no partner or no layer {module}")
        down, up = pair["A"].float(), pair["B"].float()
        weight = trained.get(name, expected[name]).float()
        shapes = (config.lora.rank, *weight.shape[1:]), (*weight.shape[:1], config.lora.rank)
        if weight.ndim != 2 or (down.shape, up.shape) != shapes:
            raise BundleError(
                f"{path}: tensor {_LORA}{module}.A is {list(down.shape)}, B {list(up.shape)}; expected factors of rank "
                f"{config.lora.rank} for a matrix {list(weight.shape)}"
            )
        trained[name] = (weight + config.lora.alpha / config.lora.rank * (up @ down)).to(dtype)
    model.load_state_dict(trained, strict=False, assign=True)


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
