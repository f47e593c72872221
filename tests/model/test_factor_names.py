"""Names of low-rank factors: every spelling, and any text at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddm_rt.model.checkpoint.factor_names import alpha_layer, factor_name

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LAYER = "text_model.encoder.layers.0.self_attn"
SPELLINGS = {
    f"{BLOCK}.to_q.lora_A.weight": ("unet", f"{BLOCK}.to_q", "A"),
    f"{BLOCK}.to_q.lora_B.weight": ("unet", f"{BLOCK}.to_q", "B"),
    f"{BLOCK}.to_q.lora_A.default.weight": ("unet", f"{BLOCK}.to_q", "A"),
    f"{BLOCK}.to_q.lora.down.weight": ("unet", f"{BLOCK}.to_q", "A"),
    f"{BLOCK}.to_q.lora.up.weight": ("unet", f"{BLOCK}.to_q", "B"),
    f"{BLOCK}.to_q.lora_down.weight": ("unet", f"{BLOCK}.to_q", "A"),
    f"{BLOCK}.processor.to_q_lora.down.weight": ("unet", f"{BLOCK}.to_q", "A"),
    f"{BLOCK}.processor.to_out_lora.up.weight": ("unet", f"{BLOCK}.to_out.0", "B"),
    f"{LAYER}.q_proj.lora_linear_layer.down.weight": ("text_encoder", f"{LAYER}.q_proj", "A"),
    f"{LAYER}.to_v_lora.up.weight": ("text_encoder", f"{LAYER}.v_proj", "B"),
    f"{LAYER}.to_out_lora.down.weight": ("text_encoder_2", f"{LAYER}.out_proj", "A"),
}
OTHERS = ("", ".lora_A.weight", "lora_A.weight", "conv_in.weight", "conv_in.bias", "to_q.lora_A.bias")
OTHERS += ("to_q.lora_C.weight", "to_q.lora_magnitude_vector", "to_q.lora_embedding_A", "to_q.lora_A.weight.extra")


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling(name: str) -> None:
    component, module, side = SPELLINGS[name]
    assert factor_name(name, component) == (module, side)


@pytest.mark.parametrize("name", OTHERS)
def test_other_names_are_no_factors(name: str) -> None:
    assert factor_name(name, "unet") is None


@pytest.mark.parametrize("name", [f"{BLOCK}.to_q.alpha", f"{BLOCK}.processor.to_q_lora.down.weight.alpha"])
def test_an_alphas_layer(name: str) -> None:
    assert alpha_layer(name, "unet") == f"{BLOCK}.to_q"


@given(module=st.from_regex(r"[a-z_]+(\.[a-z0-9_]+)*", fullmatch=True), side=st.sampled_from("AB"))
def test_pefts_spelling_of_any_layer(module: str, side: str) -> None:
    name = f"{module}.lora_{side}.weight"
    found = factor_name(name, "unet")
    assert found is not None
    assert found.side == side
    if "lora" not in module:
        assert found.module == module
    assert alpha_layer(f"{name}.alpha", "unet") == found.module


@given(st.text(alphabet="abloradwnuptqe_.ABd \n", max_size=40), st.sampled_from(["unet", "text_encoder"]))
def test_any_text_is_a_factor_or_none(name: str, component: str) -> None:
    found = factor_name(name, component)
    assert found is None or (found.module and name.endswith(".weight"))
    alpha_layer(name, component)
