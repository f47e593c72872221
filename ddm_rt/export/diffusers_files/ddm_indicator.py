"""DDM's indicator beside a Stable Diffusion UNet: code -> tokens -> an attention of their own in each cross-attention.

A component of a diffusers pipeline folder, used by pipeline.py there. It needs diffusers and torch, and nothing else.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, UNet2DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn
from torch.nn import functional as F

NULL_CODE = -1
Shared = Sequence[int] | Sequence[Sequence[int]]  # of each code: its top code, or rows of its values' vectors


class Conditioner(nn.Module):
    """A code's tokens: its vector is the sum of its own and of those that it shares, its top code's or its values'."""

    top_of: Tensor  # int64 [codes], or [codes, F] where F factors cross

    def __init__(self, top_of: Shared, embed_dim: int, num_tokens: int, context_dim: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        rows = torch.tensor(list(top_of), dtype=torch.int64)
        self.code = nn.Embedding(len(rows), embed_dim)
        self.top_code = nn.Embedding(int(rows.max()) + 1, embed_dim)
        self.tokens = nn.Linear(embed_dim, num_tokens * context_dim)
        self.norm = nn.LayerNorm(context_dim)
        self.register_buffer("top_of", rows)

    def forward(self, code: Tensor) -> Tensor:
        """code int64 [B] (the null code gives any tokens: its scale is 0) -> tokens [B,M,D]."""
        real = code.clamp(min=0)
        shared = self.top_code(self.top_of[real])  # [B, E], or [B, F, E]
        vector = self.code(real) + (shared.sum(1) if shared.ndim == 3 else shared)  # [B, E]
        tokens: Tensor = self.norm(self.tokens(vector).unflatten(-1, (self.num_tokens, -1)))
        return tokens


class Layer(nn.Module):
    """Key and value projections of the indicator tokens for one cross-attention layer."""

    def __init__(self, context_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.to_k_ind = nn.Linear(context_dim, inner_dim, bias=False)
        self.to_v_ind = nn.Linear(context_dim, inner_dim, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """tokens [B,M,D] -> keys and values [B,M,C]."""
        return self.to_k_ind(tokens), self.to_v_ind(tokens)


class DDMIndicator(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Everything that DDM adds to a checkpoint. `install` puts it into a UNet, `condition` makes a call's arguments."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        top_of: Shared,  # of each code
        embed_dim: int,
        num_tokens: int,
        context_dim: int,
        layers: Sequence[str],  # the UNet's cross-attention layers by name ...
        inner_dims: Sequence[int],  # ... and the width of their keys and values
    ) -> None:
        super().__init__()
        self.conditioner = Conditioner(top_of, embed_dim, num_tokens, context_dim)
        self.projections = nn.ModuleList(Layer(context_dim, inner_dim) for inner_dim in inner_dims)

    def install(self, unet: UNet2DConditionModel) -> None:
        """Give `unet` processors that add the indicator; without its arguments they compute what diffusers' do.

        Raises ValueError where the UNet's cross-attention layers are not those that this indicator was made for.
        """
        found = {name: m for name, m in unet.named_modules() if isinstance(m, Attention)}
        cross = [name for name in found if name.endswith("attn2")]
        if sorted(cross) != sorted(self.config.layers):
            raise ValueError(
                f"this indicator was made for a UNet with {len(self.config.layers)} cross-attention layers, "
                f"{self.config.layers[0]} first; this one has {len(cross)} ({', '.join(cross[:1]) or 'none'})"
            )
        processors: dict[str, Any] = {f"{name}.processor": SelfAttnProcessor() for name in found}
        for name, layer in zip(self.config.layers, self.projections, strict=True):
            processors[f"{name}.processor"] = IndicatorAttnProcessor(layer)
        unet.set_attn_processor(processors)

    @torch.no_grad()
    def condition(
        self, code: int | Sequence[int], indicator_scale: float, images: int, *, guided: bool
    ) -> dict[str, Tensor]:
        """`cross_attention_kwargs` for a call with `images` rows; `guided`: after as many rows with the null code.

        `code` is one for all images or one for each, -1 the null code. Raises ValueError where it doesn't fit.
        """
        codes = [code] * images if isinstance(code, int) else list(code)
        last = len(self.config.top_of) - 1
        if len(codes) != images:
            raise ValueError(f"code has {len(codes)} entries; expected one, or {images}: one per image")
        if not all(isinstance(c, int) and NULL_CODE <= c <= last for c in codes):
            raise ValueError(f"code is {code}; expected whole numbers from 0 to {last}, or {NULL_CODE} for none")
        rows = torch.tensor([NULL_CODE] * images * guided + codes, device=self.device)
        scale = torch.where(rows == NULL_CODE, 0.0, indicator_scale).to(self.dtype)
        return {"indicator_tokens": self.conditioner(rows), "indicator_scale": scale}


class IndicatorAttnProcessor:
    """softmax(q kᵀ/√D) v + s · softmax(q k_indᵀ/√D) v_ind (arXiv 2308.06721, eq. 5), s per row of the batch."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer  # a `Layer` of DDMIndicator: this class is no module, so that the UNet doesn't hold it too

    # diffusers reads this signature to decide which keyword arguments reach the processor.
    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,  # [B, N, C]
        encoder_hidden_states: Tensor,  # [B, T, D]
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        indicator_tokens: Tensor | None = None,  # [B, M, D]
        indicator_scale: Tensor | None = None,  # [B]
    ) -> Tensor:
        if attention_mask is not None:
            raise ValueError("indicator attention takes no attention mask")

        def heads(x: Tensor) -> Tensor:
            return x.view(*x.shape[:2], attn.heads, -1).transpose(1, 2)  # [B, H, N|T|M, D]

        q = heads(attn.to_q(hidden_states))
        text = heads(attn.to_k(encoder_hidden_states)), heads(attn.to_v(encoder_hidden_states))
        out = F.scaled_dot_product_attention(q, *text)
        if indicator_tokens is not None and indicator_scale is not None:
            keys, values = self.layer(indicator_tokens)
            own = F.scaled_dot_product_attention(q, heads(keys), heads(values))
            out = out + indicator_scale.view(-1, 1, 1, 1) * own
        projected: Tensor = attn.to_out[1](attn.to_out[0](out.transpose(1, 2).flatten(2)))
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
