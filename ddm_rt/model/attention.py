"""Attention processors that put the public kernel op into diffusers' cross-attention layers."""

from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from ddm_rt.kernels.indicator_attention import indicator_attention


class IndicatorAttnProcessor(nn.Module):
    """Decoupled cross-attention: text keys and values, plus the indicator's own.

    `encoder_hidden_states` [B,T,D_ctx] is the text, `indicator_tokens` [B,M,D_ctx] the code,
    `indicator_scale` [B] is s. With s = 0 the layer is diffusers' own.
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
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        indicator_tokens: Tensor | None = None,
        indicator_scale: Tensor | None = None,
    ) -> Tensor:
        if attention_mask is not None or indicator_tokens is None or indicator_scale is None:
            raise ValueError("indicator attention takes indicator_tokens and indicator_scale, and no mask")

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], attn.heads, -1)  # [B, N|T|M, H, D]

        out = indicator_attention(
            heads(attn.to_q(hidden_states)),
            heads(attn.to_k(encoder_hidden_states)),
            heads(attn.to_v(encoder_hidden_states)),
            heads(self.to_k_ind(indicator_tokens)),
            heads(self.to_v_ind(indicator_tokens)),
            indicator_scale,
        ).flatten(2)
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected


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
    ) -> Tensor:
        out: Tensor = super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        return out


def install(unet: UNet2DConditionModel) -> None:
    """Give the cross-attention layers of `unet` an IndicatorAttnProcessor, the others a SelfAttnProcessor."""
    processors: dict[str, Any] = {}
    for name, module in unet.named_modules():
        if isinstance(module, Attention):
            cross = name.endswith("attn2")
            processors[f"{name}.processor"] = IndicatorAttnProcessor(module) if cross else SelfAttnProcessor()
    unet.set_attn_processor(processors)
