"""The public op `ddm_rt::indicator_attention`, registered with torch.library.

    out = softmax(q kᵀ/√D) v + s · softmax(q k_indᵀ/√D) v_ind

q [B,N,H,D]; k, v [B,T,H,D]; k_ind, v_ind [B,M,H,D]; scale [B]; out [B,N,H,D], contiguous, in q's dtype.

On a CUDA device the fused kernel runs: float16 or bfloat16 throughout, a head dim of the tile table, T up to 512, M up
to 16. Anything else there (float32 too), and everything on the CPU, takes the reference. Gradients are the reference's
on the CPU, and on a CUDA device those of torch's own attention, which keeps no logits [B,H,N,T].
"""

import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ddm_rt.kernels import dispatch
from ddm_rt.kernels.indicator_attention.reference import indicator_attention_reference

log = logging.getLogger(__name__)


def _check(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v), ("k_ind", k_ind), ("v_ind", v_ind)):
        if tensor.dim() != 4:
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, expected 4 axes")
    batch, _, heads, dim = q.shape
    for name, tensor, keys in (("k", k, k), ("v", v, k), ("k_ind", k_ind, k_ind), ("v_ind", v_ind, k_ind)):
        if tensor.shape != (wanted := (batch, keys.shape[1], heads, dim)):
            raise RuntimeError(f"{name} has shape {tuple(tensor.shape)}, expected {wanted}")
    if scale.shape != (batch,):
        raise RuntimeError(f"scale has shape {tuple(scale.shape)}, expected {(batch,)}")


# `torch.library.custom_op` is shorter, but its ops import torch's compiler when they are first called: a second.
_NAME = "ddm_rt::indicator_attention"
torch.library.define(
    _NAME,
    "(Tensor q, Tensor k, Tensor v, Tensor k_ind, Tensor v_ind, Tensor scale) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def indicator_attention(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> Tensor:
    """See the module. Raises RuntimeError on shapes that don't fit."""
    out: Tensor = torch.ops.ddm_rt.indicator_attention.default(q, k, v, k_ind, v_ind, scale)
    return out


@torch.library.impl(_NAME, "CompositeExplicitAutograd")
def _run(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> Tensor:
    _check(q, k, v, k_ind, v_ind, scale)
    if q.is_cuda:
        return _on_device(q, k, v, k_ind, v_ind, scale)
    out: Tensor = indicator_attention_reference(q, k, v, k_ind, v_ind, scale)
    return out


def _on_device(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> Tensor:
    function, refused = _implementation()
    reason = refused(q, k, v, k_ind, v_ind)
    if reason is not None:
        _say(reason)
        function = indicator_attention_reference
    return function(q, k, v, k_ind, v_ind, scale)


@cache
def _implementation() -> tuple[Callable[..., Tensor], Callable[..., str | None]]:
    """What `auto` takes on a CUDA device, and the check of its inputs; found once, since each layer asks."""
    function = dispatch.load("indicator_attention")
    if function is indicator_attention_reference:
        return function, lambda *tensors: None
    from ddm_rt.kernels.indicator_attention.fused import refused

    return function, refused


@cache
def _say(reason: str) -> None:
    log.info("indicator attention on a CUDA device takes the reference: %s", reason)


@torch.library.register_fake(_NAME)  # type: ignore[untyped-decorator]
def _(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> Tensor:
    return q.new_empty(q.shape)


def _save(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def by_two_attentions(q: Tensor, k: Tensor, v: Tensor, k_ind: Tensor, v_ind: Tensor, scale: Tensor) -> Tensor:
    """The same by torch's own attention, twice: it keeps a number for each query in place of the logits."""
    q, k, v, k_ind, v_ind = (x.to(q.dtype).transpose(1, 2) for x in (q, k, v, k_ind, v_ind))  # [B,H,N|T|M,D]
    text = F.scaled_dot_product_attention(q, k, v)
    indicator = F.scaled_dot_product_attention(q, k_ind, v_ind)
    return (text + scale.to(text.dtype).view(-1, 1, 1, 1) * indicator).transpose(1, 2)


def differentiated(q: Tensor) -> Callable[..., Tensor]:
    """What gradients of inputs like q are taken through. On the CPU it is the oracle, whose bits runs there have."""
    return by_two_attentions if q.is_cuda else indicator_attention_reference


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients through `differentiated`, recomputed: what it computes is never kept from the forward pass."""
    saved: tuple[Tensor, ...] = ctx.saved_tensors  # type: ignore[attr-defined]
    needed = ctx.needs_input_grad  # type: ignore[attr-defined]
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_(need) for x, need in zip(saved, needed, strict=True)]
        out = differentiated(inputs[0])(*inputs)
        found = iter(torch.autograd.grad(out, [x for x in inputs if x.requires_grad], grad))
    return tuple(next(found) if need else None for need in needed)


torch.library.register_autograd(_NAME, _backward, setup_context=_save)
