"""The model: what the null code, the scale and the code tree do, and that the rest is diffusers' UNet."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from tolerances import EXPORT_FP32_ABS
from torch import Tensor

from ddm_rt.kernels.indicator_attention import attention_reference
from ddm_rt.model.indicator import Conditioner, IndicatorHead, SelfAttnProcessor
from ddm_rt.model.unet import DDM
from ddm_rt.presets import PRESETS, resolve

CONFIG = resolve("tiny")
SHAPE = CONFIG.model.latent_shape(CONFIG.data)
TOP_OF = (0, 0, 1, 1)


def build(top_of: tuple[int, ...] = TOP_OF) -> DDM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DDM(CONFIG.model, SHAPE, tuple((top,) for top in top_of)).eval()


def diffusers_twin(model: DDM) -> UNet2DConditionModel:
    """diffusers' untouched UNet with the same weights; what it doesn't know is the indicator's alone."""
    twin = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, **CONFIG.model.unet).eval()
    state = model.unet.state_dict()
    extra = twin.load_state_dict(state, strict=False)
    assert not extra.missing_keys
    assert all("_ind." in name for name in extra.unexpected_keys)
    return twin


class PlainReference:
    """Cross-attention through the oracle's plain half: what scale 0 must equal bit for bit."""

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None, temb=None) -> Tensor:  # type: ignore[no-untyped-def]
        q, k, v = (
            x.unflatten(-1, (attn.heads, -1))
            for x in (
                attn.to_q(hidden_states),
                attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states),
            )
        )
        return attn.to_out[1](attn.to_out[0](attention_reference(q, k, v).flatten(2)))


def inputs(batch: int, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    x_t = torch.randn((batch, 4, *size), generator=generator)
    return (
        x_t,
        torch.rand(batch, generator=generator) * 999,
        torch.randn((batch, 3, 16), generator=generator),
    )


NULL = {
    "null code": (torch.tensor([-1, -1, -1]), torch.tensor([1.0, 2.0, 0.0])),
    "scale 0": (torch.tensor([0, 3, 1]), torch.zeros(3)),
}


@pytest.mark.parametrize("case", NULL)
@torch.inference_mode()
def test_without_indicator_it_is_the_plain_unet_bit_for_bit(case: str) -> None:
    model = build()
    x_t, t, context = inputs(3)
    got = model(x_t, t, model.condition(context, *NULL[case]))

    twin = diffusers_twin(model)
    twin.set_attn_processor(
        {n: PlainReference() if ".attn2." in n else SelfAttnProcessor() for n in twin.attn_processors}
    )
    assert torch.equal(got, twin(x_t, t, context).sample)


@pytest.mark.parametrize("case", NULL)
@torch.inference_mode()
def test_without_indicator_it_is_diffusers_untouched_unet(case: str) -> None:
    """diffusers' attention product is another kernel, so equal to rounding."""
    model = build()
    x_t, t, context = inputs(3)
    got = model(x_t, t, model.condition(context, *NULL[case]))
    want = diffusers_twin(model)(x_t, t, context).sample
    torch.testing.assert_close(got, want, rtol=0, atol=EXPORT_FP32_ABS)


@torch.inference_mode()
def test_without_codes_it_is_diffusers_unet_bit_for_bit() -> None:
    model = build(())
    assert model.conditioner is None
    assert model.cond_names == ("text_tokens",)
    x_t, t, context = inputs(3)
    cond = model.condition(context, torch.full((3,), -1), torch.ones(3))
    assert cond.keys() == {"text_tokens"}
    assert torch.equal(model(x_t, t, cond), diffusers_twin(model)(x_t, t, context).sample)


@torch.inference_mode()
def test_a_code_changes_its_own_sample_alone() -> None:
    model = build()
    x_t, t, context = inputs(2)
    out = [
        model(x_t, t, model.condition(context, code, torch.ones(2)))
        for code in (torch.tensor([0, 1]), torch.tensor([2, 1]))
    ]
    assert not torch.equal(out[0][0], out[1][0])
    assert torch.equal(out[0][1], out[1][1])


@pytest.mark.parametrize("size", [(8, 8), (4, 10), (2, 2)])
@torch.inference_mode()
def test_any_size_that_the_levels_divide(size: tuple[int, int]) -> None:
    model = build()
    x_t, t, context = inputs(2, size)
    out = model(x_t, t, model.condition(context, torch.tensor([0, -1]), torch.ones(2)))
    assert out.shape == x_t.shape
    assert out.isfinite().all()


def test_encode_and_decode_are_inverse() -> None:
    model = build()
    images = torch.rand((2, 1, 16, 12), generator=torch.Generator().manual_seed(0))
    latents = model.encode(images)
    assert latents.shape == (2, 4, 8, 6)
    assert torch.equal(model.decode(latents), images)


def test_gradients_reach_every_parameter_of_the_indicator() -> None:
    model = build().train()
    x_t, t, context = inputs(4)
    model(x_t, t, model.condition(context, torch.tensor([0, 1, 2, 3]), torch.ones(4))).square().mean().backward()
    for name, parameter in model.named_parameters():
        if "_ind." in name or name.startswith("conditioner."):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_null_code_trains_no_code() -> None:
    model = build().train()
    x_t, t, context = inputs(2)
    model(x_t, t, model.condition(context, torch.tensor([-1, -1]), torch.ones(2))).square().mean().backward()
    assert model.conditioner is not None
    for parameter in model.conditioner.parameters():
        assert parameter.grad is None or not parameter.grad.any()


def test_codes_of_one_top_code_share_its_embedding() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conditioner = Conditioner(((0,), (1,), (0,)), embed_dim=6, num_tokens=4, context_dim=8)
    torch.nn.init.zeros_(conditioner.code.weight)
    context = torch.zeros((4, 2, 8))
    text, tokens, scale = conditioner(context, torch.tensor([0, 1, 2, -1]), torch.tensor([1.0, 0.5, 2.0, 3.0]))
    assert text is context
    assert tokens.shape == (4, 4, 8)
    assert torch.equal(tokens[0], tokens[2])
    assert not torch.equal(tokens[0], tokens[1])
    assert scale.tolist() == [1.0, 0.5, 2.0, 0.0]


def test_a_cell_of_crossing_factors_begins_as_the_sum_of_its_values() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        conditioner = Conditioner(((0, 2), (0, 3), (1, 2), (1, 3)), embed_dim=6, num_tokens=4, context_dim=8)
    vectors = conditioner.top_code.weight
    seen = []
    conditioner.tokens.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    conditioner(torch.zeros((4, 2, 8)), torch.arange(4), torch.ones(4))
    assert torch.equal(seen[0], torch.stack([vectors[a] + vectors[b] for a in (0, 1) for b in (2, 3)]))


def test_head_has_the_papers_layers() -> None:
    head = IndicatorHead((4, 16, 16), (1024, 512), 2)
    linear = [layer for layer in head.layers if isinstance(layer, torch.nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [(1024, 1024), (1024, 512), (512, 2)]
    assert head(torch.zeros(3, 4, 16, 16)).shape == (3, 2)


def test_shipped_preset_is_small() -> None:
    config = PRESETS["digits"]
    model = DDM(config.model, config.model.latent_shape(config.data), ((0,),) * 8 + ((1,),) * 8)
    assert sum(parameter.numel() for parameter in model.parameters()) * 4 < 5.5e6  # bytes
