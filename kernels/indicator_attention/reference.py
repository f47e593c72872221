"""Indicator-conditioned attention in plain torch: the oracle of every faster implementation."""

import torch
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√D) v for q [B,N,H,D] and k, v [B,T,H,D], computed in at least float32."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))  # [B,H,N|T,D]
    # The key carries the scale, never the shared query: a scaled q shared by two attention products
    # crashes the TensorRT-RTX builder.
    logits = q @ (k * q.shape[-1] ** -0.5).transpose(-1, -2)  # [B,H,N,T]
    out: Tensor = (logits.softmax(-1) @ v).transpose(1, 2)  # [B,N,H,D]
    return out


def indicator_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor
) -> Tensor:
    """softmax(q kᵀ/√D) v + s · softmax(q k_indᵀ/√D) v_ind.

    Decoupled cross-attention: IP-Adapter, arXiv 2308.06721, eq. 5.
    q [B,N,H,D]; k, v [B,T,H,D]; k_ind, v_ind [B,M,H,D]; scale [B]. Returns [B,N,H,D] in q's dtype.
    Where scale is 0 the result equals plain cross-attention bit for bit.
    """
    text = attention_reference(q, k, v)
    indicator = attention_reference(q, k_ind, v_ind)
    return (text + scale.to(text.dtype).view(-1, 1, 1, 1) * indicator).to(q.dtype).contiguous()
