"""Low-rank adaptation (arXiv 2106.09685) of a checkpoint's linear layers, by peft."""

from collections.abc import Iterator, Sequence

from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from peft.tuners.lora import Linear
from torch import nn

from ddm_rt.config import LoraConfig
from ddm_rt.errors import DdmError
from ddm_rt.model.latent import LatentDDM

ENCODER_TARGETS = ("q_proj", "v_proj")
_ADAPTER = "default"


def check_targets(unet: nn.Module, config: LoraConfig) -> None:
    """Raises DdmError naming the first of the targets that no linear layer of `unet` answers to, and what there is."""
    for target in config.targets if config.rank else ():
        if not _layers(unet, (target,)):
            there = {_short(name) for name, module in unet.named_modules() if isinstance(module, nn.Linear)}
            raise DdmError(
                f"lora.targets: {target!r} matches no linear layer of the UNet; there are: {', '.join(sorted(there))}"
            )
    if config.rank and not config.targets:
        raise DdmError("lora.targets is empty; expected names of the UNet's linear layers, for example to_q,to_v")


def inject(model: LatentDDM, config: LoraConfig) -> None:
    """Put trainable factors A (random) and B (zero) beside the weights of the layers that `config` names.

    Everything else in the networks that get some no longer takes gradients. Raises DdmError for a target that matches
    no layer.
    """
    check_targets(model.unet, config)
    _inject(model.unet, config, config.targets)
    if config.text_encoder:
        for encoder in model.text_encoders:
            _inject(encoder, config, ENCODER_TARGETS)


def factors(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The factors in `model` by their names in weights.safetensors: A [r, in], B [out, r]."""
    for name, module in model.named_modules():
        if isinstance(module, Linear):
            yield f"lora.{name}.A", module.lora_A[_ADAPTER].weight
            yield f"lora.{name}.B", module.lora_B[_ADAPTER].weight


def _inject(module: nn.Module, config: LoraConfig, targets: Sequence[str]) -> None:
    inject_adapter_in_model(
        PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=_layers(module, targets)), module, _ADAPTER
    )


def _layers(module: nn.Module, targets: Sequence[str]) -> list[str]:
    """Linear layers whose name is one of `targets`, or ends in it after a dot."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and any(name == target or name.endswith(f".{target}") for target in targets)
    ]


def _short(name: str) -> str:
    """The name's end that tells kinds of layers apart: numbers stay with the word before them (to_out.0)."""
    parts = name.split(".")
    start = len(parts) - 1
    while start > 0 and parts[start].isdigit():
        start -= 1
    return ".".join(parts[start:])
