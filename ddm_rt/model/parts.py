"""Which graphs a model becomes: the callables of a bundle as modules of named tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from ddm_rt.model import keys_values
from ddm_rt.model.unet import DDM, KEYS_VALUES, POOLED, TEXT
from ddm_rt.runtime import RuntimeConfig, TensorSpec

if TYPE_CHECKING:  # transformers, which only its families need
    from ddm_rt.model.latent import LatentDDM

Model: TypeAlias = "DDM | LatentDDM"
Axes = Mapping[str, Mapping[int, str]]  # tensor name -> axis -> name of the free dimension

BATCH = {0: "batch"}
_TOKENS = {0: "batch", 1: "tokens"}
_KEYS = {0: "batch", 1: "keys"}
_LATENT = {0: "batch", 2: "height", 3: "width"}
# Axes that are free besides the batch.
_FREE: Axes = {
    **dict.fromkeys(("context", TEXT), _TOKENS),
    KEYS_VALUES: _KEYS,
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
    cond: tuple[TensorSpec, ...] = ()  # of its inputs
    indicator_tokens: int = 0  # how many more keys than tokens of text there are
    axes: Axes = field(default_factory=lambda: _FREE)  # free ones of tensors that have others than the batch

    def sides(self, shape: Sequence[int | str], tokens: int) -> list[int]:
        """A shape of runtime.json, for texts of so many tokens."""
        lengths = {"tokens": tokens, "keys": tokens + self.indicator_tokens}
        return [length if isinstance(length, int) else lengths[length] for length in shape]

    @property
    def free(self) -> Axes:
        return {name: self.axes.get(name, BATCH) for name in (*self.inputs, *self.outputs)}


def parts(model: Model, config: RuntimeConfig, *, ready: bool = False) -> dict[str, Part]:
    """Text encoder (of bundles that take prompts), conditioner, denoiser and decoder of `model`, in the order in which
    they run.

    What the conditioner gives is tokens, or with `ready` each layer's keys and values. Those spare a step the matrix
    products that make them, and a row of them is 32 (SD 1.5) to 82 (SDXL) times as big (benchmarks/hoisting.py). With
    `ready` the model's own processors may change.
    """
    added = tuple(spec.name for spec in config.added)
    given = ("context", "code", "indicator_scale") if model.conditioner is not None else ("context",)
    specs = model.cond_specs(config.added, ready=ready)
    cond = tuple(spec.name for spec in specs)
    own: tuple[nn.Module, ...] = ()
    if ready:
        own = (keys_values.projections(model.unet),)
        model.take_ready()
    denoiser = Part(
        _Denoiser(model, cond),
        ("x_t", "t", *cond),
        ("output",),
        own=(model.unet,),
        cond=specs,
        indicator_tokens=model.num_indicator_tokens,
    )
    found = {
        "conditioner": Part(_Conditioner(model, (*given, *added), cond), (*given, *added), cond, own=own),
        "denoiser": denoiser,
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
    def __init__(self, model: Model, names: tuple[str, ...], cond: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names, self.ready = model, names, KEYS_VALUES in cond

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, inputs, strict=True))
        context = given.pop("context")
        # Without codes there is nothing to choose between; every row has the null code.
        rows = context.shape[0]
        code = given.pop("code", torch.full((rows,), -1))
        scale = given.pop("indicator_scale", torch.zeros(rows))
        added: tuple[Mapping[str, Tensor], ...] = (given,) if given else ()
        cond = self.model.condition(context, code, scale, *added)
        return tuple((self.model.ready(cond) if self.ready else cond).values())


class _Denoiser(nn.Module):
    def __init__(self, model: Model, cond: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.cond = model, cond

    def forward(self, x_t: Tensor, t: Tensor, *cond: Tensor) -> Tensor:
        out: Tensor = self.model(x_t, t, dict(zip(self.cond, cond, strict=True)))
        return out


class _Decoder(nn.Module):
    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, x0: Tensor) -> Tensor:
        return self.model.decode(x0)
