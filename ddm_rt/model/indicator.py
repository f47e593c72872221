"""The indicator: the code embedding that conditions, the attention processors that put its tokens into diffusers'
cross-attention layers, and the head C that recognises.
"""

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

from ddm_rt.kernels.indicator_attention import indicator_attention
from ddm_rt.model.keys_values import Ready, is_cross_attention, layers
from ddm_rt.runtime import SharedOf


class Conditioner(nn.Module):
    """Makes `cond` from a context and a code: once per prompt x code, outside the sampling loop.

    A code's vector is the sum of its own and of those that it shares: its top code's, so that a small leaf leans on
    its branch, or those of its values of crossing factors, so that a rare cell is what its values are elsewhere.
    Code -1 is the null code: its scale is 0, so every cross-attention is plain, bit for bit.
    """

    top_of: Tensor  # int64 [codes], or [codes, F] where F > 1 factors cross: rows of `top_code`

    def __init__(self, shared_of: SharedOf, embed_dim: int, num_tokens: int, context_dim: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        self.crossing = len(shared_of[0]) > 1
        self.code = nn.Embedding(len(shared_of), embed_dim)
        self.top_code = nn.Embedding(1 + max(map(max, shared_of)), embed_dim)
        if self.crossing:
            nn.init.zeros_(self.code.weight)  # a cell begins as the sum of its values; what else it is, is learned
        self.tokens = nn.Linear(embed_dim, num_tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)
        self.register_buffer("top_of", torch.tensor(as_stored(shared_of), dtype=torch.int64))

    def forward(self, context: Tensor, code: Tensor, indicator_scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """context [B,T,D], code int64 [B], scale [B] -> text and indicator tokens [B,M,D], s [B]."""
        real = code.clamp(min=0)  # -1 has no row; its tokens are multiplied by zero
        own, shared = self.code(real), self.top_code(self.top_of[real])  # [B, E]; [B, E] or [B, F, E]
        vector = own + (shared.sum(1) if self.crossing else shared)  # [B, E]
        tokens = self.norm(self.tokens(vector).unflatten(-1, (self.num_tokens, -1)))  # [B, M, D]
        return context, tokens, indicator_scale * (code >= 0).to(indicator_scale.dtype)


def as_stored(shared_of: SharedOf) -> list[Any]:
    """What the tensor `Conditioner.top_of` holds: a list [codes], or [codes][F] where F > 1 factors cross."""
    return [list(rows) if len(rows) > 1 else rows[0] for rows in shared_of]


class IndicatorAttnProcessor(nn.Module):
    """Decoupled cross-attention: text keys and values, plus the indicator's own.

    `encoder_hidden_states` [B,T,D_ctx] is the text, `indicator_tokens` [B,M,D_ctx] the code,
    `indicator_scale` [B] is s. `ready` has the keys and values of both in their place. With s = 0 the layer is
    diffusers' own.
    """

    def __init__(self, attn: Attention) -> None:
        super().__init__()
        context = attn.cross_attention_dim
        self.to_k_ind = nn.Linear(context, attn.inner_kv_dim, bias=False)
        self.to_v_ind = nn.Linear(context, attn.inner_kv_dim, bias=False)

    # diffusers reads this signature to decide which keyword arguments reach the processor.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B, N, C]
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        indicator_tokens: Tensor | None = None,
        indicator_scale: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        if attention_mask is not None or (indicator_tokens is None and ready is None) or indicator_scale is None:
            raise ValueError("indicator attention takes indicator_tokens and indicator_scale, and no mask")
        query = _heads(attn.to_q(hidden_states), attn)
        if ready is not None:
            keys_values = [_heads(given, attn) for given in ready[attn]]
        else:
            made = [(attn.to_k, encoder_hidden_states), (attn.to_v, encoder_hidden_states)]
            made += [(self.to_k_ind, indicator_tokens), (self.to_v_ind, indicator_tokens)]
            keys_values = [_heads(linear(tokens), attn) for linear, tokens in made]
        out = indicator_attention(query, *keys_values, indicator_scale).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


class ReadyAttnProcessor:
    """Cross-attention without an indicator, whose keys and values are given."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B, N, C]
        encoder_hidden_states: None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        assert ready is not None
        q, k, v = (_heads(x, attn).transpose(1, 2) for x in (attn.to_q(hidden_states), *ready[attn]))
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


def _heads(x: Tensor, attn: Attention) -> Tensor:
    return x.view(*x.shape[:2], attn.heads, -1)  # [B, N|T|M, H, D]


class SelfAttnProcessor(AttnProcessor2_0):  # type: ignore[misc]
    """diffusers' processor; takes and ignores the indicator, which diffusers hands to every layer."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        indicator_tokens: Tensor | None = None,
        indicator_scale: Tensor | None = None,
        ready: Ready | None = None,
    ) -> Tensor:
        out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return out


def install(unet: UNet2DConditionModel) -> None:
    """Give the cross-attention layers of `unet` an IndicatorAttnProcessor, the others a SelfAttnProcessor."""
    processors: dict[str, Any] = {}
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            cross = is_cross_attention(name, module)
            processors[f"{name}.processor"] = IndicatorAttnProcessor(module) if cross else SelfAttnProcessor()
    unet.set_attn_processor(processors)


def take_ready(unet: UNet2DConditionModel) -> None:
    """Let a UNet without an indicator be given the keys and values of its text, and nothing else from now on."""
    for module in unet.modules():
        if isinstance(module, Attention):
            module.set_processor(SelfAttnProcessor())
    for attn in layers(unet).values():
        attn.set_processor(ReadyAttnProcessor())


class IndicatorHead(nn.Module):
    """C of DDM (arXiv 2503.12536): reads the UNet's prediction, trained with it, dropped at export.

    Flatten -> Linear(C·H·W, 1024) -> ReLU -> Linear(1024, 512) -> ReLU -> Linear(512, classes).
    """

    def __init__(self, latent_shape: tuple[int, int, int], hidden: tuple[int, int], classes: int) -> None:
        super().__init__()
        channels, height, width = latent_shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * width, hidden[0]),
            nn.ReLU(),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], classes),
        )

    def forward(self, prediction: Tensor) -> Tensor:
        """prediction [B,C,H,W] -> logits [B, classes]."""
        logits: Tensor = self.layers(prediction)
        return logits
