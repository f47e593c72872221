"""The attention oracle against torch's own attention, and the registered op against the oracle."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerances import ATTENTION_FP32_ABS, ATTENTION_FP64_ABS, ATTENTION_GRADIENT_REL
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ddm_rt.kernels.indicator_attention import (
    attention_reference,
    indicator_attention,
    indicator_attention_reference,
    op,
)

# B, N, T, M, H, D: what the presets and Stable Diffusion use, and sizes that no tile divides.
SHAPES = [
    (2, 64, 1, 4, 2, 32),
    (1, 256, 77, 4, 8, 40),
    (3, 7, 5, 1, 1, 3),
    (2, 1, 1, 1, 3, 1),
    (1, 65, 33, 17, 5, 80),
]
NAMES = ("q", "k", "v", "k_ind", "v_ind", "scale")


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, seed: int = 0) -> dict[str, Tensor]:
    batch, queries, text, indicator, heads, dim = shape
    generator = torch.Generator().manual_seed(seed)

    def normal(length: int) -> Tensor:
        return torch.randn((batch, length, heads, dim), generator=generator, dtype=dtype)

    tokens = {name: normal(text if name in ("k", "v") else indicator) for name in NAMES[1:5]}
    scale = torch.rand(batch, generator=generator, dtype=dtype) + 0.5
    return {"q": normal(queries), **tokens, "scale": scale}


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention of [B,N,H,D]."""
    return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)


@pytest.mark.parametrize("shape", SHAPES)
def test_equals_two_attentions_of_torch(shape: tuple[int, ...]) -> None:
    given = inputs(shape)
    out = indicator_attention(**given)
    indicator = sdpa(given["q"], given["k_ind"], given["v_ind"])
    want = sdpa(given["q"], given["k"], given["v"]) + given["scale"].view(-1, 1, 1, 1) * indicator
    assert out.shape == given["q"].shape
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    torch.testing.assert_close(out, want, rtol=0, atol=ATTENTION_FP32_ABS)


def test_equals_the_formula_number_by_number() -> None:
    given = inputs((2, 3, 2, 2, 2, 3), torch.float64)
    out = indicator_attention(**given)

    def attend(b: int, n: int, h: int, k: Tensor, v: Tensor) -> Tensor:
        weights = [math.exp(float(given["q"][b, n, h] @ k[b, t, h]) / math.sqrt(3)) for t in range(k.shape[1])]
        return sum(w / sum(weights) * v[b, t, h] for t, w in enumerate(weights))  # type: ignore[return-value]

    for b, n, h in torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2)).tolist():
        want = attend(b, n, h, given["k"], given["v"])
        want = want + given["scale"][b] * attend(b, n, h, given["k_ind"], given["v_ind"])
        torch.testing.assert_close(out[b, n, h], want, rtol=0, atol=ATTENTION_FP64_ABS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_scale_zero_is_plain_attention_bit_for_bit(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = inputs(shape, dtype)
    given["scale"] = torch.zeros_like(given["scale"])
    plain = attention_reference(given["q"], given["k"], given["v"]).to(dtype)
    assert torch.equal(indicator_attention(**given), plain)


def test_each_sample_has_its_own_scale() -> None:
    given = inputs((3, 9, 4, 4, 2, 8))
    given["scale"] = torch.tensor([0.0, 1.0, 2.5])
    together = indicator_attention(**given)
    for b in range(3):
        alone = indicator_attention(**{name: tensor[b : b + 1] for name, tensor in given.items()})
        torch.testing.assert_close(together[b : b + 1], alone, rtol=0, atol=ATTENTION_FP32_ABS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32_and_rounded_once(dtype: torch.dtype) -> None:
    given = inputs(SHAPES[0], dtype)
    want = indicator_attention_reference(**{name: tensor.float() for name, tensor in given.items()}).to(dtype)
    assert torch.equal(indicator_attention(**given), want)


def test_strided_inputs_change_nothing() -> None:
    given = inputs((2, 6, 5, 4, 3, 8))
    strided = {
        name: tensor.transpose(1, 2).contiguous().transpose(1, 2) if tensor.dim() == 4 else tensor
        for name, tensor in given.items()
    }
    assert not strided["q"].is_contiguous()
    torch.testing.assert_close(
        indicator_attention(**strided), indicator_attention(**given), rtol=0, atol=ATTENTION_FP32_ABS
    )
    assert indicator_attention(**strided).is_contiguous()


def test_large_logits_stay_finite() -> None:
    given = inputs((1, 5, 3, 2, 1, 4))
    given["q"] *= 1e4
    assert indicator_attention(**given).isfinite().all()


def test_gradients_in_float64() -> None:
    given = inputs((2, 4, 3, 2, 2, 3), torch.float64)
    arguments = tuple(tensor.requires_grad_() for tensor in given.values())
    assert torch.autograd.gradcheck(indicator_attention, arguments)


@pytest.mark.parametrize("wanted", [("q",), ("k_ind", "v_ind"), ("scale",), ("k", "scale")])
def test_gradients_of_some_inputs_equal_those_of_the_oracle(wanted: tuple[str, ...]) -> None:
    given = inputs((2, 5, 3, 2, 2, 4))
    gradients = []
    for function in (indicator_attention, indicator_attention_reference):
        leaves = {n: x.clone().requires_grad_(n in wanted) for n, x in given.items()}
        weight = torch.randn(given["q"].shape, generator=torch.Generator().manual_seed(1))
        (function(**leaves) * weight).sum().backward()
        assert all((leaf.grad is not None) == (name in wanted) for name, leaf in leaves.items())
        gradients.append([leaves[name].grad for name in wanted])
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


class Sizes(TorchDispatchMode):
    """The numbers of values that the tensors made meanwhile hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen |= {x.numel() for x in (out if isinstance(out, tuple | list) else (out,)) if isinstance(x, Tensor)}
        return out


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are taken as on a CUDA device."""
    monkeypatch.setattr(op, "differentiated", lambda q: op.by_two_attentions)


def gradients(function: Callable[..., Tensor], given: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: x.clone().requires_grad_() for name, x in given.items()}
    weight = torch.randn(given["q"].shape, generator=torch.Generator().manual_seed(1)).to(given["q"].dtype)
    found = torch.autograd.grad((function(**leaves) * weight).sum(), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


@pytest.mark.usefixtures("as_on_cuda")
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_by_two_attentions_are_the_oracles(shape: tuple[int, ...]) -> None:
    given = inputs(shape)
    want = gradients(indicator_attention_reference, {name: x.double() for name, x in given.items()})
    size = max(x.abs().max().item() for x in want.values())  # of one key alone, the gradient is zero
    for name, found in gradients(indicator_attention, given).items():
        assert found.shape == given[name].shape
        torch.testing.assert_close(found.double(), want[name], rtol=0, atol=ATTENTION_GRADIENT_REL * size, msg=name)


@pytest.mark.usefixtures("as_on_cuda")
def test_gradients_by_two_attentions_in_float64() -> None:
    given = inputs((2, 4, 3, 2, 2, 3), torch.float64)
    assert torch.autograd.gradcheck(indicator_attention, tuple(tensor.requires_grad_() for tensor in given.values()))


@pytest.mark.parametrize(("on_cuda", "held"), [(False, True), (True, False)])
def test_gradients_on_a_cuda_device_hold_no_logits(on_cuda: bool, held: bool, request: pytest.FixtureRequest) -> None:
    if on_cuda:
        request.getfixturevalue("as_on_cuda")
    given = {name: x.requires_grad_() for name, x in inputs((2, 61, 77, 4, 3, 8)).items()}
    out = indicator_attention(**given)
    with Sizes() as sizes:
        out.sum().backward()
    assert (not sizes.seen.isdisjoint({2 * 3 * 61 * 77, 2 * 3 * 61 * 4})) == held
    assert max(sizes.seen) == 2 * 3 * (61 * 77 if held else 77 * 8)


def test_the_device_decides_what_gradients_are_taken_through() -> None:
    with FakeTensorMode():
        assert op.differentiated(torch.empty(2, 4, 2, 8, device="cuda")) is op.by_two_attentions
        assert op.differentiated(torch.empty(2, 4, 2, 8)) is indicator_attention_reference


@pytest.mark.usefixtures("as_on_cuda")
def test_registration_as_on_a_cuda_device() -> None:
    """What a compiler sees of the gradients by two attentions, by torch's own checker."""
    given = tuple(x.requires_grad_() for x in inputs(SHAPES[2]).values())
    torch.library.opcheck(torch.ops.ddm_rt.indicator_attention.default, given)


# No part of a registration looks at sizes: two more are slow.
@pytest.mark.parametrize("shape", [SHAPES[2], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES[:2])])
def test_registration(shape: tuple[int, ...]) -> None:
    """Schema, fake tensors, autograd registration and AOT dispatch, by torch's own checker."""
    given = inputs(shape)
    torch.library.opcheck(torch.ops.ddm_rt.indicator_attention.default, tuple(given.values()))
    torch.library.opcheck(
        torch.ops.ddm_rt.indicator_attention.default, tuple(x.requires_grad_() for x in given.values())
    )


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("k", (3, 5, 2, 8)),
        ("v", (2, 6, 2, 8)),
        ("k_ind", (2, 4, 1, 8)),
        ("v_ind", (2, 4, 2, 7)),
        ("scale", (2, 1)),
        ("scale", (3,)),
        ("q", (2, 6, 16)),
        ("k", (2, 5, 16)),
    ],
)
def test_shapes_that_do_not_fit_are_named(name: str, shape: tuple[int, ...]) -> None:
    given = inputs((2, 6, 5, 4, 2, 8))
    given[name] = torch.zeros(shape)
    with pytest.raises(RuntimeError, match=rf"{name} has shape \({shape[0]},"):
        indicator_attention(**given)
