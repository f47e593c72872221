"""Which graphs a model becomes: the callables of a bundle as modules of named tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from ddm_rt.model.unet import DDM, POOLED, TEXT
from ddm_rt.runtime import RuntimeConfig

if TYPE_CHECKING:  # transformers, which only its families need
    from ddm_rt.model.latent import LatentDDM

Model: TypeAlias = "DDM | LatentDDM"
Axes = Mapping[str, Mapping[int, str]]  # tensor name -> axis -> name of the free dimension

BATCH = {0: "batch"}
_TOKENS = {0: "batch", 1: "tokens"}
_LATENT = {0: "batch", 2: "height", 3: "width"}
# Axes that are free besides the batch.
_FREE: Axes = {
    **dict.fromkeys(("context", TEXT), _TOKENS),
    **dict.fromkeys(("x_t", "output", "x0"), _LATENT),
    "image": {0: "batch", 2: "image_height", 3: "image_width"},
}


@dataclass(frozen=True)
class Part:
    """One graph: the module, its inputs and outputs by name, which of their axes are free, and its own networks.

    No other graph computes with those: the exporter makes them float32 for this one, and drops them afterwards.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    own: tuple[nn.Module, ...] = ()
    axes: Axes = field(default_factory=lambda: _FREE)  # free ones of tensors that have others than the batch

    @property
    def free(self) -> Axes:
        return {name: self.axes.get(name, BATCH) for name in (*self.inputs, *self.outputs)}


def parts(model: Model, config: RuntimeConfig) -> dict[str, Part]:
    """Text encoder (of bundles that take prompts), conditioner, denoiser and decoder of `model`, in the order in which
    they run.

    What the conditioner gives is tokens, not each layer's keys and values: those save 2 % of a denoiser call, while a
    row of them is 32 (SD 1.5) to 82 (SDXL) times as big (benchmarks/hoisting.py).
    """
    added = tuple(spec.name for spec in config.added)
    given = ("context", "code", "indicator_scale") if model.conditioner is not None else ("context",)
    found = {
        "conditioner": Part(_Conditioner(model, (*given, *added)), (*given, *added), model.cond_names),
        "denoiser": Part(_Denoiser(model), ("x_t", "t", *model.cond_names), ("output",), own=(model.unet,)),
        "decoder": Part(_Decoder(model), ("x0",), ("image",), own=() if isinstance(model, DDM) else (model.vae,)),
    }
    if isinstance(model, DDM):
        return found
    outputs = ("context", *(name for name in added if name == POOLED))
    # The sequence length is fixed: the tokenizers'.
    encoder = Part(
        TextEncoder(model), tuple(spec.input for spec in config.text), outputs, axes={}, own=(model.text_encoders,)
    )
    return {"text_encoder": encoder, **found}


class TextEncoder(nn.Module):
    """input_ids int64 [B,T] per encoder -> context [B,T,D]; SDXL: and text_embeds [B,P]."""

    def __init__(self, model: "LatentDDM") -> None:
        super().__init__()
        self.model = model

    def forward(self, *input_ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model.encode_text(*input_ids).values())


class _Conditioner(nn.Module):
    def __init__(self, model: Model, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        context = given.pop("context")
        # Without codes there is nothing to choose between; every row has the null code.
        rows = context.shape[0]
        code = given.pop("code", torch.full((rows,), -1))
        scale = given.pop("indicator_scale", torch.zeros(rows))
        added: tuple[Mapping[str, Tensor], ...] = (given,) if given else ()
        return tuple(self.model.condition(context, code, scale, *added).values())


class _Denoiser(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        out: Tensor = self.model(x_t, t, dict(zip(self.model.cond_names, cond, strict=True)))
        return out


class _Decoder(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x0: Tensor) -> Tensor:
        return self.model.decode(x0)
