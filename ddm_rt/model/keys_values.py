"""Keys and values of all cross-attention layers, made once per prompt and code in place of once a step.

They are one tensor, [B, T + M, W]. Its first T rows are the text's tokens and its last M the indicator's. Its columns
are the keys of the first layer, its values, the keys of the second one, and so on, so W is twice the sum of the layers'
widths.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

Ready = Mapping[
    Attention, tuple[Tensor, ...]
]  # of each layer: k, v [B,T,C] and, with an indicator, k_ind, v_ind [B,M,C]


def layers(unet: UNet2DConditionModel) -> dict[str, Attention]:
    """The cross-attention layers by name, in the order of the columns."""
    return {name: module for name, module in unet.named_modules() if is_cross_attention(name, module)}


def is_cross_attention(name: str, module: nn.Module) -> bool:
    return isinstance(module, Attention) and name.endswith("attn2")


def projections(unet: UNet2DConditionModel) -> nn.ModuleList:
    """What the keys and values are made with; a denoiser that is given them has no other use of it."""
    found = [(attn.to_k, attn.to_v, *_of_indicator(attn)) for attn in layers(unet).values()]
    return nn.ModuleList(linear for of_layer in found for linear in of_layer)


def pack(unet: UNet2DConditionModel, text: Tensor, indicator: Tensor | None) -> Tensor:
    """Keys and values [B,T+M,W] of text tokens [B,T,D] and the indicator's [B,M,D], in the tokens' dtype."""
    found = layers(unet).values()
    rows = [torch.cat([_projected(text, linear) for attn in found for linear in (attn.to_k, attn.to_v)], dim=-1)]
    if indicator is not None:
        own = [_projected(indicator, linear) for attn in found for linear in _of_indicator(attn)]
        rows.append(torch.cat(own, dim=-1))
    return torch.cat(rows, dim=1)


def unpack(unet: UNet2DConditionModel, packed: Tensor, num_indicator_tokens: int) -> Ready:
    """What `pack` made, by layer, as views."""
    tokens = packed.shape[1] - num_indicator_tokens
    rows = [packed[:, :tokens], packed[:, tokens:]][: 1 + (num_indicator_tokens > 0)]
    found: dict[Attention, tuple[Tensor, ...]] = {}
    first = 0
    for attn in layers(unet).values():
        middle, last = first + attn.inner_kv_dim, first + 2 * attn.inner_kv_dim
        found[attn] = tuple(part for each in rows for part in (each[..., first:middle], each[..., middle:last]))
        first = last
    return found


def _of_indicator(attn: Attention) -> tuple[Any, ...]:
    own: Any = attn.processor
    return (own.to_k_ind, own.to_v_ind) if isinstance(own, nn.Module) else ()


def _projected(tokens: Tensor, linear: nn.Linear) -> Tensor:
    """In the tokens' dtype: float32 ones are not rounded to half weights before they are multiplied."""
    bias = None if linear.bias is None else linear.bias.to(tokens.dtype)
    return F.linear(tokens, linear.weight.to(tokens.dtype), bias)
