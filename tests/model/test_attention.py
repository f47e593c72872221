"""The attention processors inside diffusers' own layers."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from tolerances import ATTENTION_FP32_ABS

from ddm_rt.kernels.indicator_attention import attention_reference
from ddm_rt.model.indicator import IndicatorAttnProcessor, SelfAttnProcessor, install
from ddm_rt.presets import resolve


@pytest.fixture
def layer() -> Attention:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention(query_dim=24, cross_attention_dim=10, heads=3, dim_head=8).eval()


@torch.inference_mode()
def test_scale_zero_is_diffusers_own_layer(layer: Attention) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, text = torch.randn((2, 7, 24), generator=generator), torch.randn((2, 5, 10), generator=generator)
    tokens = torch.randn((2, 4, 10), generator=generator)
    layer.set_processor(AttnProcessor2_0())
    want = layer(hidden, text)
    layer.set_processor(IndicatorAttnProcessor(layer))
    got = layer(hidden, text, indicator_tokens=tokens, indicator_scale=torch.zeros(2))
    torch.testing.assert_close(got, want, rtol=0, atol=ATTENTION_FP32_ABS)


@torch.inference_mode()
def test_indicator_branch_adds_what_it_says(layer: Attention) -> None:
    """The output projection is linear, so the branch can be told apart behind it."""
    generator = torch.Generator().manual_seed(0)
    hidden, text = torch.randn((2, 7, 24), generator=generator), torch.randn((2, 5, 10), generator=generator)
    tokens, scale = torch.randn((2, 4, 10), generator=generator), torch.tensor([0.5, 2.0])
    processor = IndicatorAttnProcessor(layer)
    layer.set_processor(processor)
    plain = layer(hidden, text, indicator_tokens=tokens, indicator_scale=torch.zeros(2))
    both = layer(hidden, text, indicator_tokens=tokens, indicator_scale=scale)
    q, k, v = (
        x.unflatten(-1, (3, 8)) for x in (layer.to_q(hidden), processor.to_k_ind(tokens), processor.to_v_ind(tokens))
    )
    branch = (attention_reference(q, k, v) * scale.view(-1, 1, 1, 1)).flatten(2)  # [B, N, H·D]
    torch.testing.assert_close(both - plain, branch @ layer.to_out[0].weight.T, rtol=0, atol=ATTENTION_FP32_ABS)


def test_mask_or_missing_indicator_is_refused(layer: Attention) -> None:
    layer.set_processor(IndicatorAttnProcessor(layer))
    hidden, text = torch.zeros(1, 2, 24), torch.zeros(1, 3, 10)
    with pytest.raises(ValueError, match="indicator_tokens and indicator_scale, and no mask"):
        layer(hidden, text)
    with pytest.raises(ValueError, match="and no mask"):
        layer(
            hidden,
            text,
            attention_mask=torch.zeros(3, 1, 3),
            indicator_tokens=torch.zeros(1, 4, 10),
            indicator_scale=torch.ones(1),
        )


def test_install_covers_every_layer_and_trains_only_its_own() -> None:
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, **resolve("tiny").model.unet)
    before = copy.deepcopy(unet.state_dict())
    install(unet)
    for name, processor in unet.attn_processors.items():
        expected = IndicatorAttnProcessor if ".attn2." in name else SelfAttnProcessor
        assert type(processor) is expected, name
    after = unet.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    added = after.keys() - before.keys()
    assert added
    assert all(name.endswith(("to_k_ind.weight", "to_v_ind.weight")) for name in added)
